"""Glyph shapes: signed distance fields of matplotlib's fonts, warped and drawn at 24 × 24.

A distance field d(x) (pixels, positive inside the stroke) makes drawing a look-up: the ink's
coverage is clamp(½ + d, 0, 1), and adding a constant to d thickens every stroke evenly. One
bilinear sample a pixel then gives smooth edges at any scale, rotation or bend.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from robustft.data.words import CHARACTERS
from robustft.optional import require

SIZE = 24  # pixels of a drawn image
_FIELD = 48  # resolution of a stored field, which covers the same extent as the image
_RENDER = 96  # resolution the font is rasterised at
_POINTS = 80  # font size in those pixels: the widest glyph still fits

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmr10",
    "cmb10",
    "cmti10",
    "cmmi10",
)
# Never drawn in pre-training: the "fonts" shift of the digits.
HELD_OUT_FONTS = (
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif-Italic",
    "STIXGeneralBolIta",
    "cmss10",
    "cmtt10",
)


@cache
def distance_fields(fonts: tuple[str, ...] = FONTS) -> torch.Tensor:
    """Signed distances of every font's glyphs: [len(fonts), 62, 48, 48] float32.

    Unit: pixels of the 24 × 24 image, positive inside. Each glyph is centred by its bounding box;
    the font size is such that a DejaVu capital is 15 pixels high. Built once a process.
    """
    edt = require("scipy.ndimage", extra="train").distance_transform_edt
    image, draw, fonts_module = (
        require(f"PIL.{name}", extra="openclip") for name in ("Image", "ImageDraw", "ImageFont")
    )
    folder = Path(require("matplotlib", extra="plot").get_data_path()) / "fonts" / "ttf"
    fields = np.empty((len(fonts), len(CHARACTERS), _FIELD, _FIELD), dtype=np.float32)
    for row, name in enumerate(fonts):
        font = fonts_module.truetype(str(folder / f"{name}.ttf"), _POINTS)
        for column, character in enumerate(CHARACTERS):
            left, top, right, bottom = font.getbbox(character)
            canvas = image.new("L", (_RENDER, _RENDER), 0)
            corner = ((_RENDER - left - right) / 2, (_RENDER - top - bottom) / 2)
            draw.Draw(canvas).text(corner, character, font=font, fill=255)
            inside = np.asarray(canvas) >= 128
            # Pixel centres lie half a pixel from the outline, which edt counts as a whole one.
            distance = np.where(inside, edt(inside) - 0.5, 0.5 - edt(~inside))
            step = _RENDER // _FIELD
            coarse = distance.reshape(_FIELD, step, _FIELD, step).mean(axis=(1, 3))
            fields[row, column] = coarse * (SIZE / _RENDER)
    return torch.from_numpy(fields)


def draw_glyphs(
    font: np.ndarray,
    character: np.ndarray,
    rng: np.random.Generator,
    *,
    fonts: tuple[str, ...] = FONTS,
    angle: np.ndarray,
    thickness: np.ndarray,
    scale: tuple[float, float] = (0.85, 1.35),
    stretch: float = 0.22,
    shear: float = 0.2,
    shift: float = 2.0,
    bend: float = 1.0,
) -> torch.Tensor:
    """Coverage of the ink, [N, 24, 24] float32 in [0, 1].

    font, character: int [N], indices into `fonts` and CHARACTERS. angle: degrees [N], counter-
    clockwise. thickness: pixels added to each side of a stroke [N]. The rest is jitter: `scale` a
    range, `stretch` and `shear` half-widths (log aspect, slope), `shift` and `bend` in pixels; a
    bend is a smooth random displacement over a 4 × 4 grid, as a hand does.
    """
    count = len(font)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (count, *shape)).astype(np.float32))

    size = uniform(*scale)
    aspect = torch.exp(uniform(-stretch, stretch))
    slope = uniform(-shear, shear)
    move = uniform(-shift, shift, 2) * (2 / SIZE)
    bends = torch.from_numpy(rng.standard_normal((count, 2, 4, 4), dtype=np.float32))
    turn = torch.from_numpy(np.deg2rad(angle).astype(np.float32))

    # From a pixel of the image to a point of the field: undo the shift, turn, shear and scale.
    cos, sin = torch.cos(turn), torch.sin(turn)
    across, down = size * aspect, size / aspect
    matrix = torch.stack(
        [
            torch.stack([(cos - slope * sin) / across, (-sin - slope * cos) / across], dim=-1),
            torch.stack([sin / down, cos / down], dim=-1),
        ],
        dim=-2,
    )
    line = (torch.arange(SIZE, dtype=torch.float32) + 0.5) * (2 / SIZE) - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    points = grid - move[:, None, None, :]
    points = (points[..., None, :] * matrix[:, None, None]).sum(-1)
    if bend:
        smooth = F.interpolate(bends, size=(SIZE, SIZE), mode="bicubic", align_corners=True)
        points = points + smooth.movedim(1, -1) * (bend * 2 / SIZE)

    fields = distance_fields(fonts)[torch.from_numpy(font), torch.from_numpy(character)]
    distance = F.grid_sample(
        fields[:, None], points, mode="bilinear", padding_mode="border", align_corners=False
    )[:, 0]
    # Outside the field the border's value is kept, which is "far outside" for every glyph.
    grown = torch.from_numpy(thickness.astype(np.float32))[:, None, None]
    return (distance * size[:, None, None] + grown + 0.5).clamp(0, 1)
