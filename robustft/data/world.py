"""The built-in world: 24 × 24 pictures of digits and letters with captions such as
"a noisy orange letter k", made from a seed and needing no files.

It pre-trains the tiny model, serves as DiVE's reference pairs, and gives the two sets on which
forgetting is measured: which letter, and which ink. Every image is a pure function of its seed;
image i of a set does not depend on how many are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from robustft.data.datasets import ImageDataset, PairDataset
from robustft.data.glyphs import FONTS, SIZE, draw_glyphs
from robustft.data.words import (
    CHARACTERS,
    COLOUR_NAMES,
    COLOURS,
    CONDITIONS,
    FRAMES,
    INK_TEMPLATES,
    LETTER_TEMPLATES,
    LETTERS,
    TEXTURES,
    caption,
    describe,
)
from robustft.errors import InputError

_CHUNK = 256  # images drawn from one generator
# First word of each seed: streams with different words share no image.
PRETRAIN, REFERENCE, LETTER_SET, INK_SET, SHIFTS, SPLIT = range(1, 7)
_DISTINCT = 0.5  # smallest RGB distance between an ink and the ground below it


@dataclass(frozen=True)
class Glyphs:
    """N drawn glyphs and what is true of them. All arrays have N rows."""

    images: np.ndarray  # uint8 [N, 24, 24, 3]
    character: np.ndarray  # int64, index into CHARACTERS
    ink: np.ndarray  # int64, index into COLOUR_NAMES
    ground: np.ndarray  # int64, index into COLOUR_NAMES
    texture: np.ndarray  # int64, index into TEXTURES
    conditions: np.ndarray  # bool [N, 4], columns as CONDITIONS

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def concatenate(cls, parts: list[Glyphs]) -> Glyphs:
        return cls(
            *(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls))
        )


def glyph_batch(
    count: int,
    seed: tuple[int, ...],
    *,
    characters: str = CHARACTERS,
    fonts: tuple[str, ...] = FONTS,
) -> Glyphs:
    """Draw `count` glyphs from one generator seeded with `seed`.

    A third are black on plain white, as print and handwriting are; the others have any ink on any
    ground it stands out from. Digits are 40 % of what is drawn when both kinds are asked for.
    """
    rng = np.random.default_rng(np.random.SeedSequence(list(seed)))
    character = _choose_characters(count, characters, rng)
    font = rng.integers(0, len(fonts), count)
    plain = rng.random(count) < 1 / 3
    ink, ground = colour_pairs()[rng.integers(0, len(colour_pairs()), count)].T
    ink = np.where(plain, COLOUR_NAMES.index("black"), ink)
    ground = np.where(plain, COLOUR_NAMES.index("white"), ground)
    texture = np.where(plain | (rng.random(count) < 0.5), 0, rng.integers(1, len(TEXTURES), count))

    conditions = rng.random((count, len(CONDITIONS))) < np.array([0.2, 0.3, 0.15, 0.25])
    noisy, blurry, tilted, thick = conditions.T
    side = rng.choice([-1.0, 1.0], count)
    angle = np.where(tilted, side * rng.uniform(22, 40, count), rng.uniform(-14, 14, count))
    thickness = np.where(thick, rng.uniform(0.7, 1.4, count), rng.uniform(-0.1, 0.5, count))
    alpha = draw_glyphs(font, character, rng, fonts=fonts, angle=angle, thickness=thickness)

    colours = jitter(palette()[ink], rng)
    image = textured_ground(jitter(palette()[ground], rng), texture, rng)
    image += alpha[:, None] * (torch.from_numpy(colours)[:, :, None, None] - image)
    image = _blur(image, np.where(blurry, rng.integers(1, len(_blurs()), count), 0))
    sigma = np.where(noisy, rng.uniform(0.1, 0.25, count), 0.02).astype(np.float32)
    noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
    image += noise * torch.from_numpy(sigma)[:, None, None, None]
    return Glyphs(to_bytes(image), character, ink, ground, texture, conditions)


def glyph_images(
    count: int,
    seed: tuple[int, ...],
    *,
    characters: str = CHARACTERS,
    fonts: tuple[str, ...] = FONTS,
) -> Glyphs:
    """Any number of glyphs, drawn in chunks: the first n are the same whatever `count` is."""
    parts = [
        glyph_batch(_CHUNK, (*seed, chunk), characters=characters, fonts=fonts)
        for chunk in range(_chunks(count))
    ]
    whole = Glyphs.concatenate(parts)
    return Glyphs(*(getattr(whole, f.name)[:count] for f in fields(Glyphs)))


def _chunks(count: int) -> int:
    if count < 1:
        raise InputError(f"n: got {count} images, expected at least 1")
    return -(-count // _CHUNK)


def phrases(glyphs: Glyphs, seed: tuple[int, ...]) -> list[str]:
    """What is said of each glyph: "noisy orange letter k". True, and a random part of the truth."""
    rng = np.random.default_rng(np.random.SeedSequence([*seed, 1]))
    draws = rng.random((len(glyphs), 6)).tolist()
    mentioned = (rng.random(glyphs.conditions.shape) < 0.5) & glyphs.conditions
    result = []
    for row, draw in enumerate(draws):
        named = draw[0] < 0.9
        on_ground = draw[1] < 0.2
        result.append(
            describe(
                CHARACTERS[glyphs.character[row]],
                # A phrase that does not name the character says its ink, or it would say little.
                ink=COLOUR_NAMES[glyphs.ink[row]] if draw[2] < 0.35 or not named else None,
                ground=COLOUR_NAMES[glyphs.ground[row]] if on_ground else None,
                texture=TEXTURES[glyphs.texture[row]] if on_ground and draw[3] < 0.6 else None,
                conditions=tuple(
                    word for word, said in zip(CONDITIONS, mentioned[row], strict=True) if said
                ),
                case=draw[4] < 0.15,
                name=named,
                ink_last=draw[5] < 0.4,
            )
        )
    return result


def captions(said: list[str], seed: tuple[int, ...]) -> list[str]:
    """The phrases `said`, each with an article and in a random frame: "a photo of a letter k."."""
    rng = np.random.default_rng(np.random.SeedSequence([*seed, 2]))
    frames = rng.integers(0, len(FRAMES), len(said)).tolist()
    articles = np.where(rng.random(len(said)) < 0.4, "the", "a").tolist()
    return [
        caption(phrase, frame=FRAMES[frame], article=article)
        for phrase, frame, article in zip(said, frames, articles, strict=True)
    ]


def reference_pairs(n: int, seed: int = 0) -> PairDataset:
    """`n` image–caption pairs from the pre-training distribution, for DiVE (arXiv 2511.09973)."""
    parts = [glyph_batch(_CHUNK, (REFERENCE, seed, chunk)) for chunk in range(_chunks(n))]
    texts = [
        text
        for chunk, part in enumerate(parts)
        for text in captions(phrases(part, (REFERENCE, seed, chunk)), (REFERENCE, seed, chunk))
    ]
    images = np.concatenate([part.images for part in parts])
    return PairDataset(images[:n], texts[:n], name="glyphs")


def letters(n: int = 1040, seed: int = 0) -> ImageDataset:
    """Letters of the world, in upper and lower case: 26 classes, a to z. A test set."""
    glyphs = glyph_images(n, (LETTER_SET, seed), characters=CHARACTERS[10:])
    labels = (glyphs.character - 10) % 26
    return ImageDataset(
        glyphs.images,
        labels,
        classnames=list(LETTERS),
        templates=LETTER_TEMPLATES,
        name="Letters",
        split="test",
    )


def inks(n: int = 1000, seed: int = 0) -> ImageDataset:
    """Glyphs of the world, to be classified by the colour of their ink: 10 classes. A test set."""
    glyphs = glyph_images(n, (INK_SET, seed))
    return ImageDataset(
        glyphs.images,
        glyphs.ink,
        classnames=list(COLOUR_NAMES),
        templates=INK_TEMPLATES,
        name="Inks",
        split="test",
    )


@lru_cache(maxsize=1)
def palette() -> np.ndarray:
    """RGB of each colour name, [10, 3] float32."""
    return np.array(list(COLOURS.values()), dtype=np.float32)


@lru_cache(maxsize=1)
def colour_pairs() -> np.ndarray:
    """The (ink, ground) index pairs that can be told apart, [P, 2]."""
    gap = np.linalg.norm(palette()[:, None] - palette()[None], axis=-1)
    return np.argwhere(gap >= _DISTINCT)


def jitter(colours: np.ndarray, rng: np.random.Generator, sigma: float = 0.035) -> np.ndarray:
    """Colours [N, 3] moved a little, still in [0, 1]."""
    moved = colours + rng.standard_normal(colours.shape, dtype=np.float32) * np.float32(sigma)
    return moved.clip(0, 1)


def textured_ground(
    colours: np.ndarray, texture: np.ndarray, rng: np.random.Generator
) -> torch.Tensor:
    """Grounds [N, 3, 24, 24] in [0, 1]: `colours` [N, 3] and a lighter or darker shade of each,
    mixed by the pattern that `texture` [N] (an index into TEXTURES) names."""
    count = len(colours)
    angle = rng.uniform(0, np.pi, count).astype(np.float32)[:, None, None]
    period = rng.uniform(4, 9, count).astype(np.float32)[:, None, None]
    phase = rng.uniform(0, 2 * np.pi, (2, count, 1, 1)).astype(np.float32)
    clouds = torch.from_numpy(rng.standard_normal((count, 1, 5, 5), dtype=np.float32))
    contrast = rng.uniform(0.12, 0.28, (count, 1)).astype(np.float32)

    line = np.arange(SIZE, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    along = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period) + phase[0]
    across = (y * np.cos(angle) - x * np.sin(angle)) * (2 * np.pi / period) + phase[1]
    wave, other = np.sin(along), np.sin(across)
    cloud = F.interpolate(clouds, (SIZE, SIZE), mode="bicubic")[:, 0].numpy()
    patterns = (
        np.zeros_like(wave),
        (2 * wave + 0.5).clip(0, 1),
        (4 * wave * other + 0.5).clip(0, 1),
        (4 * (wave + other) - 3.5).clip(0, 1),
        (cloud / 2 + 0.5).clip(0, 1),
    )
    mix = np.choose(texture[:, None, None], patterns).astype(np.float32)
    # Towards white from a dark colour, towards black from a light one.
    target = (colours.mean(axis=1, keepdims=True) < 0.5).astype(np.float32)
    shade = colours + (target - colours) * contrast
    first, second = (torch.from_numpy(c)[:, :, None, None] for c in (colours, shade))
    return first + torch.from_numpy(mix)[:, None] * (second - first)


def gaussian_matrix(sigma: float) -> np.ndarray:
    """M with M x = x blurred along its length (24), sigma in pixels; rows sum to one."""
    line = np.arange(SIZE)
    weights = np.exp(-((line[:, None] - line[None]) ** 2) / (2 * sigma**2))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resolution_matrix(pixels: int) -> np.ndarray:
    """M with M x = x averaged down to `pixels` samples and brought back to 24 linearly."""
    down = F.adaptive_avg_pool1d(torch.eye(SIZE)[None], pixels)[0]
    up = F.interpolate(torch.eye(pixels)[None], SIZE, mode="linear")[0]
    return (down @ up).T.numpy()


def apply_matrices(image: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """M X Mᵀ for every channel: image [N, 3, 24, 24], matrices [N, 24, 24]."""
    return matrices[:, None] @ image @ matrices[:, None].mT


@lru_cache(maxsize=1)
def _blurs() -> torch.Tensor:
    """What "blurry" means, [K, 24, 24]; the first leaves the image as it is."""
    matrices = [np.eye(SIZE, dtype=np.float32)]
    matrices += [gaussian_matrix(sigma) for sigma in (0.8, 1.1, 1.4, 1.7)]
    matrices += [resolution_matrix(pixels) for pixels in (7, 8, 10)]
    return torch.from_numpy(np.stack(matrices))


def _blur(image: torch.Tensor, kind: np.ndarray) -> torch.Tensor:
    chosen = np.flatnonzero(kind)
    if len(chosen):
        image[chosen] = apply_matrices(image[chosen], _blurs()[kind[chosen]])
    return image


def to_bytes(image: torch.Tensor) -> np.ndarray:
    """[N, 3, 24, 24] in [0, 1], clipped and rounded to uint8 [N, 24, 24, 3]."""
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).numpy()


def _choose_characters(count: int, characters: str, rng: np.random.Generator) -> np.ndarray:
    """Indices into CHARACTERS: digits 40 %, upper and lower case letters alike 60 %."""
    index = np.array([CHARACTERS.index(character) for character in characters])
    digit = index < 10
    weight = np.where(digit, 0.4 / max(digit.sum(), 1), 0.6 / max((~digit).sum(), 1))
    return rng.choice(index, count, p=weight / weight.sum())
