"""The built-in world: shapes, colours, captions, and that a seed decides everything."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from robustft.data import world
from robustft.data.glyphs import FONTS, HELD_OUT_FONTS, draw_glyphs
from robustft.data.words import (
    CHARACTERS,
    COLOUR_NAMES,
    CONDITIONS,
    DIGITS,
    TEXTURES,
    VOCABULARY,
    caption,
    describe,
)
from robustft.errors import InputError

STILL = {"scale": (1.0, 1.0), "stretch": 0, "shear": 0, "shift": 0, "bend": 0}


def draw(characters, angle=0.0, thickness=0.0, fonts=FONTS, font=0):
    index = np.array([CHARACTERS.index(c) for c in characters])
    count = len(index)
    return draw_glyphs(
        np.full(count, font),
        index,
        np.random.default_rng(0),
        fonts=fonts,
        angle=np.full(count, angle),
        thickness=np.full(count, thickness),
        **STILL,
    ).numpy()


def test_an_unmoved_glyph_is_the_font_itself():
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
    font = ImageFont.truetype(str(path), 160)  # eight times the size it has at 24 pixels
    drawn = draw("R5g", fonts=("DejaVuSans-Bold",))
    for character, coverage in zip("R5g", drawn, strict=True):
        left, top, right, bottom = font.getbbox(character)
        canvas = Image.new("L", (192, 192), 0)
        corner = ((192 - left - right) / 2, (192 - top - bottom) / 2)
        ImageDraw.Draw(canvas).text(corner, character, font=font, fill=255)
        expected = np.asarray(canvas, dtype=float).reshape(24, 8, 24, 8).mean((1, 3)) / 255
        assert np.abs(coverage - expected).mean() < 0.02
        assert np.corrcoef(coverage.ravel(), expected.ravel())[0, 1] > 0.97


def test_a_quarter_turn_is_counter_clockwise():
    upright, turned = draw("Fk7"), draw("Fk7", angle=90)
    for before, after in zip(upright, turned, strict=True):
        np.testing.assert_allclose(after, np.rot90(before), atol=2e-3)


def test_thickness_adds_ink_on_both_sides():
    thin, thick = draw("l", thickness=0.0)[0], draw("l", thickness=1.0)[0]
    middle = 12
    assert thick[middle].sum() - thin[middle].sum() == pytest.approx(2.0, abs=0.15)


def test_held_out_fonts_are_not_pre_trained_on():
    assert not set(FONTS) & set(HELD_OUT_FONTS)
    assert len({draw("a", font=i)[0].tobytes() for i in range(len(FONTS))}) == len(FONTS)


def test_the_same_seed_draws_the_same_bits_on_any_number_of_threads():
    threads = torch.get_num_threads()
    first = world.glyph_batch(64, (1, 2))
    try:
        torch.set_num_threads(2)
        again = world.glyph_batch(64, (1, 2))
    finally:
        torch.set_num_threads(threads)
    other = world.glyph_batch(64, (1, 3))
    for name in ("images", "character", "ink", "ground", "texture", "conditions"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    assert not np.array_equal(first.images, other.images)


def test_an_image_does_not_depend_on_how_many_are_asked_for():
    few, many = world.glyph_images(5, (8,)), world.glyph_images(300, (8,))
    assert np.array_equal(few.images, many.images[:5])
    assert len(many) == 300
    few, many = world.reference_pairs(5, 1), world.reference_pairs(300, 1)
    assert few.captions == many.captions[:5]
    assert np.array_equal(few.images.pixels, many.images.pixels[:5])
    with pytest.raises(InputError, match="n: got 0 images, expected at least 1"):
        world.reference_pairs(0)


def test_seeds_of_the_sets_share_no_image():
    sets = [world.letters(100, 0), world.letters(100, 1), world.inks(100, 0)]
    images = [image.tobytes() for data in sets for image in data.images.pixels]
    images += [image.tobytes() for image in world.reference_pairs(100, 0).images.pixels]
    assert len(set(images)) == 400


@pytest.fixture(scope="module")
def glyphs():
    return world.glyph_images(1024, (5,))


def test_ink_and_ground_have_their_names_colours(glyphs):
    clean = ~glyphs.conditions[:, [0, 1]].any(1)
    pixels = glyphs.images[clean].reshape(clean.sum(), -1, 3) / 255.0
    palette = world.palette()
    ink = np.abs(pixels - palette[glyphs.ink[clean], None]).max(-1).min(1)
    assert np.mean(ink < 0.15) > 0.98
    plain = glyphs.texture[clean] == 0
    ground = np.abs(np.median(pixels, axis=1) - palette[glyphs.ground[clean]]).max(-1)
    assert np.mean(ground[plain] < 0.15) > 0.9
    assert (np.linalg.norm(palette[glyphs.ink] - palette[glyphs.ground], axis=1) > 0.49).all()


def test_conditions_show_in_the_pixels(glyphs):
    rough = np.abs(np.diff(glyphs.images.astype(float), axis=2)).mean((1, 2, 3))
    noisy, blurry = glyphs.conditions[:, 0], glyphs.conditions[:, 1]
    plain = glyphs.texture == 0
    assert rough[plain & noisy].mean() > 1.5 * rough[plain & ~noisy].mean()
    assert rough[plain & blurry & ~noisy].mean() < 0.8 * rough[plain & ~blurry & ~noisy].mean()


def test_textures_vary_the_ground():
    count = 40
    colours = np.full((count, 3), 0.8, dtype=np.float32)
    rng = np.random.default_rng(0)
    for kind in range(len(TEXTURES)):
        ground = world.textured_ground(colours, np.full(count, kind), rng).numpy()
        spread = ground.reshape(count, -1).std(1)
        assert (spread.max() < 1e-6) if kind == 0 else (spread.min() > 0.01), TEXTURES[kind]


def test_captions_are_true(glyphs):
    said = world.phrases(glyphs, (5,))
    mentioned = Counter()
    for row, text in enumerate(said):
        character = CHARACTERS[glyphs.character[row]]
        about, _, ground = text.partition(" on ")
        words = about.split()
        kind = "digit" if character.isdigit() else "letter"
        assert kind in words
        rest = words[words.index(kind) + 1 :]
        name = rest[0] if rest and rest[0] != "in" else None
        expected = DIGITS[int(character)] if character.isdigit() else character.lower()
        assert name in (expected, None)
        inks = set(words[: words.index(kind)] + rest[1:]) & set(COLOUR_NAMES)
        inks |= set(rest[:2]) & set(COLOUR_NAMES)
        assert inks <= {COLOUR_NAMES[glyphs.ink[row]]}
        assert name or inks
        for column, condition in enumerate(CONDITIONS):
            assert condition not in words or glyphs.conditions[row, column]
        assert "capital" not in words or character.isupper()
        assert "small" not in words or character.islower()
        if ground:
            texture, colour = TEXTURES[glyphs.texture[row]], COLOUR_NAMES[glyphs.ground[row]]
            assert re.fullmatch(rf"an? ({texture} )?{colour} ground", ground)
        mentioned.update(
            name=name is not None, ink=bool(inks), ground=bool(ground), noisy="noisy" in words
        )
    assert mentioned["name"] > 850
    assert 300 < mentioned["ink"] < 600
    assert mentioned["ground"] > 120
    assert mentioned["noisy"] > 50


def test_wording():
    assert describe("K", conditions=("noisy",), ink="orange") == "noisy orange letter k"
    assert caption("noisy orange letter k") == "a noisy orange letter k"
    assert caption("orange digit one", frame="a photo of {}.") == "a photo of an orange digit one."
    assert caption("digit one", article="the") == "the digit one"
    text = describe("7", ink="red", ink_last=True, ground="orange", case=True)
    assert text == "digit seven in red ink on an orange ground"
    assert describe("q", ink="pink", name=False, case=True) == "pink small letter"


def test_every_word_is_in_the_vocabulary(glyphs):
    texts = world.captions(world.phrases(glyphs, (5,)), (5,))
    for data in (world.letters(2), world.inks(2)):
        texts += [t.format(name) for t in data.templates for name in data.classnames]
    assert {word for text in texts for word in re.findall(r"[a-z]+", text)} <= set(VOCABULARY)


def test_forgetting_sets():
    letters, inks = world.letters(780), world.inks(400)
    assert (len(letters.classnames), len(inks.classnames)) == (26, 10)
    assert letters.labels.bincount(minlength=26).min() > 8
    assert inks.labels.bincount(minlength=10).min() > 5
    drawn = world.glyph_images(780, (world.LETTER_SET, 0), characters=CHARACTERS[10:])
    names = [CHARACTERS[c].lower() for c in drawn.character]
    assert [letters.classnames[label] for label in letters.labels] == names
    assert letters[3]["image"].size == (24, 24)
