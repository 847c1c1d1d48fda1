"""Pixels of any of Pillow's modes to 8-bit RGB, a few rows at a time."""

from __future__ import annotations

from PIL import Image

from cosa.data.levels import rendered
from cosa.data.orientation import AS_STORED, Turn
from cosa.data.samples import LoadedSamples, strips


def to_rgb(image: Image.Image, turn: Turn = AS_STORED) -> Image.Image:
    """A loaded image of any Pillow mode as upright 8-bit RGB; itself where it is that already.

    Beside the image and the result, which takes 4 bytes a pixel, the memory that this needs does
    not grow with the image. See ``cosa.data.images.read_image`` for what becomes of the values.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return turn.applied(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return rendered(LoadedSamples(image), turn)[0]
    result = Image.new("RGB", turn.size(image.size))
    for top, strip in strips(image):
        corner = turn.corner(top, top + strip.height, image.height)
        part = _on_white(strip) if image.has_transparency_data else strip.convert("RGB")
        result.paste(turn.applied(part), corner)
    return result


def _on_white(part: Image.Image) -> Image.Image:
    part = part.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB")
