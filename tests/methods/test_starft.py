"""StarFT: its texts, and its weight over the epochs."""

import pytest
import torch

from robustft.errors import InputError, InputWarning
from robustft.methods import make_method
from robustft.methods.starft_words import PHRASES
from robustft.methods.token_rows import Phrases, Tokens
from robustft.models import load_clip
from robustft.train import TrainConfig

WORDS = ["in the snow", "made of glass", "with an (odd) mark"]
CAPTIONS = ["a photo of a cat.", "the number 7", "a cat, e.g. a tabby .", ".", "", "two cats..."]


class Model:
    def __init__(self, tokenizer):
        self.tokenizer, self.name = tokenizer, "model"


@pytest.mark.parametrize("name", ["ViT-B-32", "robustft-tiny"])
def test_tokens_with_a_phrase_are_those_of_the_text_with_the_phrase(name):
    import open_clip

    load_clip("robustft-tiny")  # which makes it known to open_clip
    tokenizer = open_clip.get_tokenizer(name)
    phrases = Phrases(Tokens(Model(tokenizer), method="x"), WORDS)
    for index, phrase in enumerate(WORDS):
        got = phrases.after(tokenizer(CAPTIONS), torch.full((len(CAPTIONS),), index))
        bare = [c[:-1] if c.endswith(".") and not c.endswith("..") else c for c in CAPTIONS]
        wanted = tokenizer([f"{caption} {phrase}." for caption in bare])
        single = [i for i, c in enumerate(CAPTIONS) if not c.endswith("..") and c != "."]
        assert torch.equal(got[single], wanted[single])


def test_a_text_that_does_not_fit_is_cut_as_the_tokenizer_cuts_it():
    clip = load_clip("robustft-tiny")
    phrases = Phrases(Tokens(clip, method="x"), WORDS)
    for count in range(15, 26):
        caption = " ".join(["a"] * count)
        got = phrases.after(clip.tokenizer([caption]), torch.tensor([0]))
        assert torch.equal(got, clip.tokenizer([f"{caption} in the snow."]))


def test_the_weight_falls_to_zero_in_the_last_epoch():
    clip = load_clip("robustft-tiny")
    falling, constant = make_method("starft"), make_method("starft", decay=False)
    module = falling.setup(clip, ["a", "b"], ["{}"])
    shares = []
    for epoch in range(4):
        falling.begin_step(module, epoch, 4)
        shares.append(module.share)
    assert shares == [0.75, 0.5, 0.25, 0.0]
    constant.begin_step(module, 3, 4)
    assert module.share == 1.0
    with pytest.warns(InputWarning, match="epochs: got 1, in which starft's falling weight is 0"):
        falling.stages(TrainConfig(epochs=1))


def test_phrases_come_from_three_lists_or_from_a_file(tmp_path):
    assert [len(words) for words in PHRASES.values()] == [40, 40, 20]
    assert len(make_method("starft", spurious="all").phrases) == 100
    assert make_method("starft", spurious="texture").phrases == list(PHRASES["texture"])
    assert not any(p.endswith(".") for words in PHRASES.values() for p in words)
    file = tmp_path / "words.txt"
    file.write_text("in the snow.\n\n  on a beach\n")
    method = make_method("starft", phrases=str(file))
    assert method.phrases == ["in the snow", "on a beach"]
    file.write_text("\n.\n")
    with pytest.raises(InputError, match=r"phrases: got none in .*words.txt"):
        make_method("starft", phrases=str(file))
    with pytest.raises(InputError, match="text file not found: nowhere"):
        make_method("starft", phrases="nowhere")


def test_a_run_is_told_apart_by_its_phrases_not_by_their_file(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    for path in (one, other):
        path.write_text("in the snow\n")
    first, second = (make_method("starft", phrases=str(p)).identity() for p in (one, other))
    assert first == second
    other.write_text("in the sea\n")
    assert make_method("starft", phrases=str(other)).identity() != first
