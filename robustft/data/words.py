"""The words of the built-in glyph world: what a glyph can be, and how captions say it.

The tiny model's tokenizer is built from `VOCABULARY`, so a change here needs a new checkpoint.
"""

from __future__ import annotations

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

# Ink and ground colours, RGB in [0, 1].
COLOURS: dict[str, tuple[float, float, float]] = {
    "black": (0.08, 0.08, 0.08),
    "white": (0.95, 0.95, 0.95),
    "grey": (0.50, 0.50, 0.50),
    "red": (0.85, 0.13, 0.12),
    "orange": (0.95, 0.52, 0.08),
    "yellow": (0.95, 0.88, 0.20),
    "green": (0.13, 0.60, 0.22),
    "blue": (0.13, 0.28, 0.85),
    "purple": (0.50, 0.18, 0.65),
    "pink": (0.96, 0.60, 0.76),
}
COLOUR_NAMES = tuple(COLOURS)
TEXTURES = ("plain", "striped", "checkered", "dotted", "cloudy")
CONDITIONS = ("noisy", "blurry", "tilted", "thick")

# Shifts of the handwritten digits' look, and the digits in print, plain and with the same shifts.
SHIFT_NAMES = (
    *("ink", "texture", "inverted", "noise", "lowres"),
    *("fonts", "fonts-ink", "fonts-texture", "fonts-inverted", "fonts-noise"),
)

FRAMES = (
    "{}",
    "{}.",
    "a photo of {}.",
    "a picture of {}.",
    "an image of {}.",
    "a drawing of {}.",
)

DIGIT_TEMPLATES = [
    "a photo of the digit {}.",
    "a photo of a digit {}.",
    "a picture of the digit {}.",
    "an image of the digit {}.",
    "a drawing of a digit {}.",
    "the digit {}",
]
LETTER_TEMPLATES = [template.replace("digit", "letter") for template in DIGIT_TEMPLATES]
INK_TEMPLATES = [
    "a photo of a {} letter.",
    "a photo of a {} digit.",
    "a picture of a letter in {} ink.",
    "an image of a digit in {} ink.",
    "a {} letter",
    "a digit in {} ink",
]

VOCABULARY = (
    *DIGITS,
    *LETTERS,
    *COLOUR_NAMES,
    *TEXTURES,
    *CONDITIONS,
    *["a", "an", "the", "of", "in", "on", "ink", "ground", "digit", "letter", "capital", "small"],
    *["photo", "picture", "image", "drawing", "character", "written", "handwritten"],
)


def describe(
    character: str,
    *,
    ink: str | None = None,
    ground: str | None = None,
    texture: str | None = None,
    conditions: tuple[str, ...] = (),
    case: bool = False,
    name: bool = True,
    ink_last: bool = False,
) -> str:
    """A phrase that mentions exactly the attributes given, without an article.

    `character` is one of CHARACTERS; `case` says "capital" or "small" of a letter; `name=False`
    leaves the character itself unnamed ("red letter"); `ink_last` puts the ink behind the name.
    """
    words = list(conditions)
    if ink is not None and not ink_last:
        words.append(ink)
    if character.isdigit():
        words.append("digit")
        if name:
            words.append(DIGITS[int(character)])
    else:
        if case:
            words.append("capital" if character.isupper() else "small")
        words.append("letter")
        if name:
            words.append(character.lower())
    if ink is not None and ink_last:
        words += ["in", ink, "ink"]
    about = [word for word in (texture, ground) if word is not None]
    if about:
        words += ["on", _article(about[0]), *about, "ground"]
    return " ".join(words)


def caption(phrase: str, *, frame: str = "{}", article: str = "a") -> str:
    """The phrase with its article ("a" becomes "an" where needed) in a frame: a caption."""
    return frame.format(f"{_article(phrase) if article == 'a' else article} {phrase}")


def _article(following: str) -> str:
    return "an" if following[0] in "aeiou" else "a"
