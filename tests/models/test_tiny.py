"""The built-in tiny CLIP: built by open_clip, tokenizer, checkpoint, pre-training."""

from __future__ import annotations

import gzip
import hashlib

import pytest
import torch

open_clip = pytest.importorskip("open_clip")

from robustft import cache  # noqa: E402
from robustft.data import load_dataset  # noqa: E402
from robustft.data.words import VOCABULARY  # noqa: E402
from robustft.errors import InputError  # noqa: E402
from robustft.models import load_clip, tiny  # noqa: E402
from robustft.train.pretrain import pretrain, zero_shot_top1  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """A cache folder of the tests' own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    cache.folder.cache_clear()
    tiny.register()
    yield
    cache.folder.cache_clear()
    patch.undo()


def test_open_clip_builds_it_unmodified():
    tiny.register()  # a second time
    model, train, val = open_clip.create_model_and_transforms("robustft-tiny")
    tokens = open_clip.get_tokenizer("robustft-tiny")(["a photo of a letter k.", "the digit one"])
    assert tokens.shape == (2, tiny.CONTEXT_LENGTH)
    image = load_dataset("digits", "test")[0]["image"]
    assert train(image).shape == val(image).shape == (3, 24, 24)
    features = model.encode_image(torch.stack([val(image)] * 2))
    assert features.shape == model.encode_text(tokens).shape == (2, tiny.EMBED_DIM)
    assert torch.equal(features[0], features[1])
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in model.modules())


def test_both_towers_have_places_for_adapters():
    model = open_clip.create_model("robustft-tiny")
    for block in model.visual.trunk.blocks:
        assert isinstance(block.ls1, torch.nn.Identity)
        assert isinstance(block.ls2, torch.nn.Identity)
        assert isinstance(block.attn.proj, torch.nn.Linear)
        assert isinstance(block.mlp.fc2, torch.nn.Linear)
    for block in model.transformer.resblocks:
        assert isinstance(block.ls_1, torch.nn.Identity)
        assert isinstance(block.attn, torch.nn.MultiheadAttention)
    assert len(model.visual.trunk.blocks) == len(model.transformer.resblocks) == 2


def test_every_word_is_one_token():
    tokenizer = open_clip.get_tokenizer("robustft-tiny")
    ids = [tokenizer.encode(word) for word in VOCABULARY]
    assert {len(i) for i in ids} == {1}
    assert len({i[0] for i in ids}) == len(set(VOCABULARY))
    assert tokenizer.decode(tokenizer.encode("a noisy orange letter k")).split() == [
        *["a", "noisy", "orange", "letter", "k"]
    ]
    # Any other text is spelled out, not lost.
    assert tokenizer.decode(tokenizer.encode("zebra")).strip() == "zebra"
    assert (
        tokenizer.vocab_size
        == open_clip.get_model_config("robustft-tiny")["text_cfg"]["vocab_size"]
    )


def test_merges_build_words_and_stop():
    merges = tiny.byte_pair_merges(("aab", "ab"))
    assert merges == [("a", "b</w>"), ("a", "ab</w>")]


def test_the_vocabulary_file_is_the_same_every_time():
    first = tiny._config_file()
    vocabulary = first.with_name("vocabulary.txt.gz")
    content = vocabulary.read_bytes()
    assert gzip.decompress(content).startswith(b"#version")
    vocabulary.unlink()
    first.write_text("{}")
    assert tiny._config_file() == first
    assert vocabulary.read_bytes() == content
    assert "vocab_size" in first.read_text()


def test_a_read_only_cache_falls_back_to_a_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache.folder.cache_clear()
    folder = cache.folder()
    cache.folder.cache_clear()
    assert folder.is_dir()
    assert tmp_path not in folder.parents


def test_the_checkpoint_is_the_one_named(tmp_path):
    path = tiny.verify()
    assert path.stat().st_size < 2_000_000
    assert hashlib.sha256(path.read_bytes()).hexdigest() == tiny.TINY_SHA256
    other = tmp_path / "tiny.safetensors"
    other.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(InputError, match=rf"{other} has SHA-256 .* expected {tiny.TINY_SHA256}"):
        tiny.verify(other)
    with pytest.raises(InputError, match=r"checkpoint is missing: .*absent"):
        tiny.verify(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "floor"), [("digits", 0.55), ("letters", 0.75), ("inks", 0.75), ("digits-fonts", 0.8)]
)
def test_the_checkpoint_sees(name, floor):
    data = load_dataset(name, "test", seed=11).subset(range(300), split="test")
    assert zero_shot_top1(load_clip("robustft-tiny", "glyphs"), data) > floor


def test_a_short_pre_training_learns_and_repeats(tmp_path):
    path = tmp_path / "short.safetensors"
    settings = {"seed": 3, "steps": 120, "batch_size": 48, "warmup": 10, "progress": False}
    before = torch.get_rng_state()
    result = pretrain(path, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    first, last = (sum(result["loss"][part]) for part in (slice(0, 5), slice(-5, None)))
    assert last < 0.95 * first
    assert set(result["accuracy"]) > {"Digits", "Digits-val", "Digits-noise", "Letters", "Inks"}
    assert path.stat().st_size < 2_000_000
    model = open_clip.create_model("robustft-tiny", pretrained=str(path))
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]
    again = tmp_path / "again.safetensors"
    pretrain(again, evaluate=False, **settings)
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(InputError, match="steps, batch_size, warmup, lr: got 0"):
        pretrain(None, steps=0)
