"""transformers' CLIP and SigLIP in the place of open_clip's: read, tuned, merged, given back.

Models are small and their weights random; the tokenizer is CLIP's own.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from robustft.errors import InputError, InputTypeError
from robustft.methods import make_method
from robustft.models import (
    Classifier,
    Clip,
    add_adapters,
    copy_clip,
    load_adapters,
    load_clip,
    merged_state_dict,
    save_adapters,
    to_transformers,
)
from robustft.train import TrainConfig, fit

transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("open_clip")

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 2}  # fmt: skip
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
TEXTS = ["a photo of a cat", "two dogs, running"]


def words(length):
    """A tokenizer of a few words, for SigLIP, whose own is not made without its file."""
    tokenizers = pytest.importorskip("tokenizers")
    listed = ["<pad>", "<eos>", "<unk>", "a", "photo", "of", "cat", "two", "dogs", "running"]
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({x: n for n, x in enumerate(listed)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def clip_processor():
    from open_clip.tokenizer import SimpleTokenizer

    known = SimpleTokenizer()
    pairs = sorted(known.bpe_ranks, key=known.bpe_ranks.get)
    vocabulary = dict(known.encoder)
    for ours, theirs in (
        ("<start_of_text>", "<|startoftext|>"),
        ("<end_of_text>", "<|endoftext|>"),
    ):
        vocabulary[theirs] = vocabulary.pop(ours)
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=pairs)
    size = {"height": 32, "width": 32}
    pixels = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    return transformers.CLIPProcessor(image_processor=pixels, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def both(clip_processor):
    """A model and a processor of either family."""
    torch.manual_seed(0)
    text = {**TOWER, "max_position_embeddings": 16}
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    )
    text = {**TOWER, "max_position_embeddings": 16, "vocab_size": 16, "pad_token_id": 0}
    text |= {"eos_token_id": 1, "bos_token_id": 1}
    siglip = transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text, vision_config=VISION)
    )
    with torch.no_grad():
        siglip.logit_scale.fill_(2.0)
    pixels = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    processor = SimpleNamespace(image_processor=pixels, tokenizer=words(16))
    return {"clip": (clip.eval(), clip_processor), "siglip": (siglip.eval(), processor)}


@pytest.fixture(params=["clip", "siglip"])
def pair(request, both):
    model, processor = both[request.param]
    return copy.deepcopy(model), processor


@pytest.fixture
def picture():
    torch.manual_seed(1)
    return Image.fromarray(torch.randint(0, 256, (40, 56, 3), dtype=torch.uint8).numpy())


def test_features_are_those_of_transformers(pair, picture):
    model, processor = pair
    clip = Clip.from_transformers(model, processor)
    image = clip.preprocess_val(picture).unsqueeze(0)
    pixels = processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(image, pixels)
    padded = {"padding": "max_length", "max_length": 16, "return_tensors": "pt"}
    tokens = processor.tokenizer(TEXTS, **padded)
    with torch.no_grad():
        there = model(input_ids=tokens["input_ids"], pixel_values=pixels)
        images, texts, scale = clip.model(image, clip.tokenizer(TEXTS))
    torch.testing.assert_close(images, F.normalize(there.image_embeds, dim=-1))
    torch.testing.assert_close(texts, F.normalize(there.text_embeds, dim=-1))
    assert clip.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert scale.reshape(()).item() == pytest.approx(clip.logit_scale)
    assert (clip.embed_dim, clip.context_length) == (there.image_embeds.shape[1], 16)


def test_what_is_trained_is_the_model_itself_and_the_way_back_is_bit_for_bit(pair):
    model, processor = pair
    clip = Clip.from_transformers(model, processor)
    own = {id(p) for p in model.parameters()}
    assert {id(p) for p in clip.model.parameters()} == own
    with torch.no_grad():
        for parameter in clip.model.parameters():
            parameter.add_(0.25)
    back = to_transformers(clip.model)
    assert type(back) is type(model)
    assert back.state_dict().keys() == model.state_dict().keys()
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
        assert tensor.data_ptr() != model.state_dict()[name].data_ptr()


def test_adapters_sit_in_both_towers_and_fold_into_the_model(pair, picture, tmp_path):
    model, processor = pair
    clip = Clip.from_transformers(model, processor)
    plain = copy_clip(clip)
    adapters = add_adapters(clip.model, rank=4)
    assert [site.tower for site in adapters.sites] == ["image"] * 4 + ["text"] * 4
    assert {site.name.rpartition(".")[2] for site in adapters.sites} == {"self_attn", "mlp"}
    with torch.no_grad():
        for name, tensor in adapters.state_dict().items():
            if name.endswith("up"):
                tensor.normal_()
    image, text = clip.preprocess_val(picture).unsqueeze(0), clip.tokenizer(TEXTS)
    clip.model.eval()
    with torch.no_grad():
        adapted = clip.model(image, text)[:2]
        before = plain.model(image, text)[:2]
        plain.model.load_state_dict(merged_state_dict(clip.model, adapters))
        merged = plain.model(image, text)[:2]
    for one, other, was in zip(adapted, merged, before, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(one, was, atol=1e-3)
    with pytest.raises(InputError, match="with adapters, expected them merged"):
        to_transformers(clip.model)
    save_adapters(adapters, tmp_path / "adapters")
    adapters.remove()
    load_adapters(tmp_path / "adapters", clip.model)


@pytest.mark.parametrize("name", ["ft", "flyp", "r-adapter"])
def test_methods_train_it(pair, name):
    from robustft.data import load_dataset

    clip = Clip.from_transformers(*pair)
    data = load_dataset("digits", "train")._take(range(16))
    data = data.preloaded(clip.preprocess_val)
    config = TrainConfig(epochs=2, batch_size=8, lr=1e-2, warmup=1)
    before = copy.deepcopy(clip.model.state_dict())
    tuned = fit(make_method(name), clip, data, None, config, templates="photo", progress=False)
    assert all(torch.equal(clip.model.state_dict()[k], v) for k, v in before.items())
    changed = [k for k, v in tuned.clip.state_dict().items() if not torch.equal(v, before[k])]
    towers = {k.partition(".")[0] for k in changed}
    assert "visual" in towers
    assert ("text" in towers) == (name != "ft")
    assert "logit_bias" not in changed
    assert to_transformers(tuned.clip).state_dict().keys()


def test_checkpointed_activations_give_the_same_gradients(pair, picture):
    clip = Clip.from_transformers(*pair)
    image, text = clip.preprocess_val(picture).unsqueeze(0), clip.tokenizer(TEXTS)
    clip.model.train()
    try:
        clip.model.set_grad_checkpointing()
    except InputError as error:
        pytest.skip(str(error))
    found = []
    for enable in (False, True):
        clip.model.set_grad_checkpointing(enable)
        clip.model.zero_grad()
        images, texts, _ = clip.model(image, text)
        (images @ texts.T).square().sum().backward()
        found.append([p.grad.clone() for p in clip.model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 20
    torch.testing.assert_close(found[0], found[1])


def test_it_is_loaded_by_name_from_a_folder(both, clip_processor, picture, tmp_path):
    model, _ = both["clip"]
    model.save_pretrained(tmp_path / "mine")
    clip_processor.save_pretrained(tmp_path / "mine")
    clip = load_clip(f"hf:{tmp_path / 'mine'}")
    again = Clip.from_transformers(model, clip_processor)
    image, text = clip.preprocess_val(picture).unsqueeze(0), clip.tokenizer(TEXTS)
    assert torch.equal(text, again.tokenizer(TEXTS))
    assert all(
        torch.equal(again.model.state_dict()[k], v) for k, v in clip.model.state_dict().items()
    )
    with torch.no_grad():
        torch.testing.assert_close(clip.model(image, text), again.model(image, text))
    head = Classifier.zero_shot(clip, ["cat", "dog"], "photo")
    assert head(image).shape == (1, 2)
    with pytest.raises(InputError, match=r"expected none, .*: hf:.* has weights"):
        load_clip(f"hf:{tmp_path / 'mine'}", "openai")


def test_a_folder_of_adapters_is_folded_in(both, clip_processor, picture, tmp_path):
    from robustft.models.adapter_files import Base

    folder = tmp_path / "model"
    both["clip"][0].save_pretrained(folder)
    clip_processor.save_pretrained(folder)
    name = f"hf:{folder}"
    clip = load_clip(name)
    adapters = add_adapters(clip.model)
    with torch.no_grad():
        for tensor in adapters.state_dict().values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    save_adapters(adapters, tmp_path / "adapters", base=Base(name, None))
    right = load_clip(name).model
    right.load_state_dict(merged_state_dict(clip.model, adapters, 0.8))
    found = load_clip(name, tmp_path / "adapters", alpha=0.8)
    image = found.preprocess_val(picture)[None]
    with torch.no_grad():
        assert torch.equal(found.model.encode_image(image), right.encode_image(image))
    with pytest.raises(InputError, match="expected none, or a folder of adapters"):
        load_clip(name, "openai")
    save_adapters(adapters, tmp_path / "adapters", base=Base("hf:another", None))
    with pytest.raises(InputError, match="made for hf:another"):
        load_clip(name, tmp_path / "adapters")


def test_clip_s_tokens_are_open_clip_s(both):
    import open_clip

    clip = Clip.from_transformers(*both["clip"])
    assert torch.equal(clip.tokenizer(TEXTS), open_clip.get_tokenizer("ViT-B-32")(TEXTS)[:, :16])


def test_other_models_are_refused(both):
    model, processor = both["clip"]
    with pytest.raises(InputTypeError, match="got Linear, expected transformers' CLIPModel"):
        Clip.from_transformers(torch.nn.Linear(2, 2), processor)
    with pytest.raises(InputTypeError, match="expected one with an image_processor and a token"):
        Clip.from_transformers(model, processor.tokenizer)
    other = copy.deepcopy(model)
    other.config.model_type = "chinese_clip"
    with pytest.raises(InputError, match="family 'chinese_clip', expected one of clip, siglip"):
        Clip.from_transformers(other, processor)
    with pytest.raises(InputTypeError, match="expected one that came from transformers"):
        to_transformers(torch.nn.Linear(2, 2))


@pytest.mark.slow
def test_the_command_line_trains_and_evaluates_it(both, clip_processor, tmp_path, monkeypatch):
    from robustft.cli.app import run

    monkeypatch.chdir(tmp_path)
    both["clip"][0].save_pretrained("mine")
    clip_processor.save_pretrained("mine")
    options = ["--model", "hf:mine", "--method", "r-adapter", "--epochs", "1", "--name", "run"]
    assert run(["train", *options, "--zero-shot", "inks", "--save-frequency", "0"]) == 0
    monkeypatch.chdir("/")
    folder = str(tmp_path / "logs" / "run")
    assert run(["eval", "--run", folder, "--alpha", "0,1"]) == 0
    assert run(["export", "--run", folder, "--out", str(tmp_path / "x.safetensors")]) == 2
    given = str(tmp_path / "given-back")
    assert run(["export", "--run", folder, "--alpha", "1", "--out", given]) == 0
    back, before = transformers.AutoModel.from_pretrained(given), both["clip"][0]
    assert type(back) is type(before)
    name = "vision_model.encoder.layers.0.mlp.fc2.weight"
    assert not torch.equal(back.state_dict()[name], before.state_dict()[name])
    assert load_clip(f"hf:{given}").tokenizer(TEXTS).shape == (2, 16)
    assert "AutoModel.from_pretrained" in (tmp_path / "given-back" / "README.md").read_text()
