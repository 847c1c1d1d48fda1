"""Image files of many formats, damaged at random: the same ones for the same seed."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, features

from tests.helpers.image_files import STORED, chunk, exif, itxt, spliced, tiff, xmp

EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x01", b"\x01\0\0\0",
            b"\0\0\x01\0", b"\x80\0\0\0")
"""What is written over four bytes, where a length or an offset may be."""


def files() -> dict[str, bytes]:
    """A small whole file of each kind."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (11, 17, 4), np.uint8), "RGBA").convert("RGB")
    grey, other = rgb.convert("L"), rgb.rotate(180)
    rgba = rgb.copy()
    rgba.putalpha(grey)
    wide = Image.fromarray(rng.integers(0, 65536, (11, 17)).astype(np.uint16))
    turned = b"Exif\0\0" + exif(6)
    tagged = {"exif": turned}

    def several() -> dict:
        return {"save_all": True, "append_images": [other.copy()]}

    made = {
        "png": (rgb, "PNG", {}), "png-grey": (grey, "PNG", tagged), "png-alpha": (rgba, "PNG", {}),
        "png-palette": (rgb.quantize(9), "PNG", {"transparency": b"\0\x80\xff"}),
        "png-16": (wide, "PNG", {}), "apng": (rgb, "PNG", several()),
        "png-bits": (grey.convert("1"), "PNG", {}),
        "jpeg": (rgb, "JPEG", tagged), "jpeg-grey": (grey, "JPEG", {}),
        "jpeg-cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "jpeg-progressive": (rgb, "JPEG", {"progressive": True}), "mpo": (rgb, "MPO", several()),
        "tiff": (rgb, "TIFF", tagged), "tiff-lzw": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "tiff-deflate": (grey, "TIFF", {"compression": "tiff_deflate"} | tagged),
        "tiff-jpeg": (rgb, "TIFF", {"compression": "jpeg"}),
        "tiff-pages": (grey, "TIFF", several()),
        "tiff-float": (grey.convert("F"), "TIFF", {}), "tiff-16": (wide, "TIFF", {}),
        "tiff-xmp": (grey, "TIFF", {"tiffinfo": {700: xmp(6)}}),
        "bmp": (rgb, "BMP", {}), "bmp-palette": (rgb.quantize(9), "BMP", {}),
        "gif": (rgb.quantize(9), "GIF", {"transparency": 2}), "gifs": (rgb, "GIF", several()),
        "webp": (rgb, "WEBP", tagged), "webp-alpha": (rgba, "WEBP", {"lossless": True}),
        "webps": (rgb, "WEBP", several()), "jp2": (rgb, "JPEG2000", {}),
        "ppm": (rgb, "PPM", {}), "pgm": (grey, "PPM", {}), "pbm": (grey.convert("1"), "PPM", {}),
        "pgm-16": (wide, "PPM", {}), "tga": (rgb, "TGA", {}), "ico": (rgba, "ICO", {}),
    }
    if "avif" in features.modules and features.check("avif"):
        made["avif"] = (rgb, "AVIF", tagged)
    whole = {}
    for name, (image, kind, options) in made.items():
        content = io.BytesIO()
        # Of a copy: Pillow notes at an image how one format wants it.
        image.copy().save(content, format=kind, **options)
        whole[name] = content.getvalue()
    for orientation, stored in STORED.items():
        whole[f"tiff-{orientation}"] = tiff(stored(np.asarray(grey)), orientation)
    return whole


def cases(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Damaged files, each with the kind of the whole one that it comes from."""
    whole, rng = files(), np.random.default_rng(seed)
    names = list(whole)
    for number in range(count):
        name = names[number % len(names)]
        content = whole[name]
        for _ in range(rng.integers(1, 4)):
            content = _damaged(content, whole[names[rng.integers(len(names))]], rng)
        yield name, content


def _damaged(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted(int(at) for at in rng.integers(0, len(content) + 1, 2))
    near = int(rng.integers(0, min(len(content), 160) + 1))  # where headers are
    kind = rng.integers(8)
    if kind == 0:  # bits anywhere
        flipped = bytearray(content)
        for at in rng.integers(0, max(1, len(content)), rng.integers(1, 6)):
            flipped[at : at + 1] = bytes([rng.integers(256)])
        return bytes(flipped)
    if kind == 1:  # a byte of a header
        return content[:near] + bytes([rng.integers(256)]) + content[near + 1 :]
    if kind == 2:  # a number in a header
        return content[:near] + EXTREMES[rng.integers(len(EXTREMES))] + content[near + 4 :]
    if kind == 3:  # the end is lost
        return content[:end]
    if kind == 4:  # a part is lost
        return content[:start] + content[min(end, start + 40) :]
    if kind == 5:  # a part is there twice
        return content[:end] + content[start:]
    if kind == 6:  # a part of another file
        return content[:start] + other[start : start + 60] + content[start:]
    return _with_metadata(content, rng)


def _with_metadata(content: bytes, rng: np.random.Generator) -> bytes:
    """The file with one more piece of metadata, of any orientation, where its format has some."""
    orientation, value = int(rng.integers(0, 11)), int(rng.integers(2, 5))
    told = exif(orientation, kind=value, count=int(rng.integers(0, 3)))
    text = xmp(orientation)
    if content.startswith(b"\x89PNG") and b"IDAT" in content and b"IEND" in content:
        piece = itxt(text) if rng.integers(2) else chunk(b"eXIf", told)
        return spliced(content, piece, late=bool(rng.integers(2)))
    if content.startswith(b"\xff\xd8"):
        told = b"http://ns.adobe.com/xap/1.0/\0" + text if rng.integers(2) else b"Exif\0\0" + told
        return content[:2] + b"\xff\xe1" + (len(told) + 2).to_bytes(2, "big") + told + content[2:]
    at = content.find(b"\x12\x01")  # the tag in a TIFF file of little endian
    if at > 0:
        return content[: at + 8] + bytes([orientation]) + content[at + 9 :]
    return content + told
