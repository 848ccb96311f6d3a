"""Fine-tuning Hugging Face's CLIPModel with CLIP's loss from robustft, in a loop of your own.

    python examples/transformers_clip.py --model openai/clip-vit-base-patch32 --data FOLDER

FOLDER has train/<class>/*; the default is scikit-learn's digits. `--model random` builds a small
model with random weights and needs no network. To use robustft's methods on such a model instead:
robustft.models.Clip.from_transformers(model, processor).
"""

import argparse

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import functional as images
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from robustft.data import load_dataset
from robustft.losses import CLIPLoss

# CLIP's own mean and standard deviation of pixels.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def model_and_tokenizer(name):
    if name != "random":
        return CLIPModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    text = {**tower, "vocab_size": 256, "max_position_embeddings": 24, "eos_token_id": 255}
    vision = {**tower, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)

    def bytes_of(texts, **_):  # one token a byte
        rows = [[*text.encode()[:23], 255] for text in texts]
        ids = torch.tensor([row + [255] * (24 - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return CLIPModel(config), bytes_of


def main(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="openai/clip-vit-base-patch32")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-5)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = model_and_tokenizer(args.model)
    model.to(device).train()
    size = model.config.vision_config.image_size

    def preprocess(picture):
        tensor = images.to_tensor(images.resize(picture.convert("RGB"), [size, size]))
        return images.normalize(tensor, MEAN, STD)

    data = load_dataset(args.data, "train").with_transform(preprocess)
    captions = [f"a photo of a {name}." for name in data.classnames]
    tokens = tokenizer(captions, padding=True, return_tensors="pt")
    loader = DataLoader(data, args.batch_size, shuffle=True, drop_last=True)
    stream = (batch for _ in range(args.steps) for batch in loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    loss_of = CLIPLoss()
    losses = []
    for _ in range(args.steps):
        batch = next(stream)
        text = {name: ids[batch["label"]].to(device) for name, ids in tokens.items()}
        found = model(**text, pixel_values=batch["image"].to(device))
        image_features = F.normalize(found.image_embeds, dim=-1)
        text_features = F.normalize(found.text_embeds, dim=-1)
        # In the place of model(..., return_loss=True).loss, which keeps the B × B logits.
        loss = loss_of(image_features, text_features, model.logit_scale.exp())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {args.steps} steps")
    return losses


if __name__ == "__main__":
    main()
