"""Phrases that say something about a picture and nothing about its class, for StarFT."""

from __future__ import annotations

_BACKGROUNDS = """
in a forest | on a beach | in a desert | in the snow | on a meadow | by a lake | under water
on a mountain | in a city street | in a kitchen | in a living room | in a bedroom | in a garage
in an office | on a wooden table | on a white background | on a black background | on green grass
on a road | at night | at sunset | in the rain | in thick fog | in front of a brick wall
in front of a window | on a carpet | in a field of flowers | on a rocky shore | in a parking lot
in a supermarket | in a garden | in a swamp | against a blue sky | in a bamboo grove
on a tiled floor | in a cave | on a bridge | in a harbour | in a stadium | in a museum
"""

_TEXTURES = """
made of wood | made of stone | made of glass | made of metal | made of clay | made of paper
made of fabric | made of leather | made of plastic | made of wool | made of marble | made of ice
with a rough surface | with a smooth surface | with a shiny surface | with a matte surface
with a striped pattern | with a dotted pattern | with a checkered pattern | with a floral pattern
with a cracked surface | with a rusty surface | with a furry surface | with a scaly surface
with a bumpy surface | with a wrinkled surface | with a woven texture | with a grainy texture
with a knitted texture | with a porous texture | with a wet surface | with a dusty surface
with brush strokes | with pencil lines | with a metallic sheen | with a velvet texture
with a mosaic pattern | with a marbled pattern | with a scratched surface | with a waxy surface
"""

_RESOLUTIONS = """
in low resolution | in high resolution | with visible pixels | with compression artefacts
with motion blur | out of focus | in sharp focus | with heavy noise | with film grain
as a small thumbnail | seen from far away | as an extreme close-up | underexposed | overexposed
with low contrast | in black and white | with faded colours | upscaled from a tiny image
taken with an old camera | cropped from a larger picture
"""

#: The three kinds, each a tuple of phrases without a period.
PHRASES: dict[str, tuple[str, ...]] = {
    kind: tuple(part.strip() for line in text.strip().splitlines() for part in line.split("|"))
    for kind, text in (
        ("background", _BACKGROUNDS),
        ("texture", _TEXTURES),
        ("resolution", _RESOLUTIONS),
    )
}
