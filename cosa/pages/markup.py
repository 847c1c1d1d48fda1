"""HTML as Python writes it: whatever is no ``Markup`` is text, here and nowhere else escaped."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from PIL import Image

from cosa.core.text import shown

_EMPTY = {"img", "meta", "br"}
"""Elements that have no end."""

_MOST = 400
"""Characters of a name or value; of longer ones the middle is left out."""


class Markup(str):
    """HTML, as :func:`element` and :func:`joined` make it."""


def text(value: object) -> Markup:
    """A name, value or sentence within HTML; characters that cannot be seen become escapes."""
    return Markup(html.escape(shown(value, _MOST)))


def element(tag: str, *children: Any, **attributes: object) -> Markup:
    """An element of HTML.

    Args:
        tag: its name, one of this program's own.
        children: ``Markup`` as it is, iterables of children, nothing for None, all else as text.
        attributes: ``class_`` is class, other "_" are "-"; None leaves one out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text_of_attribute(value)}"'
        for key, value in attributes.items() if value is not None
    )
    if tag in _EMPTY:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{joined(*children)}</{tag}>")


def text_of_attribute(value: object) -> str:
    """The value of an attribute; one that is ``Markup``, as of :func:`picture`, is not cut."""
    return html.escape(value if isinstance(value, Markup) else shown(value, _MOST))


def joined(*children: Any) -> Markup:
    """Children of :func:`element` one after the other."""
    parts = []
    for child in children:
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, Iterable) and not isinstance(child, str):
            parts.append(joined(*child))
        elif child is not None:
            parts.append(text(child))
    return Markup("".join(parts))


def name(value: object) -> Markup:
    """A name that somebody else gave, whose direction of writing is its own affair."""
    return element("bdi", value)


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]], class_: str = "") -> Markup:
    """A table whose first column is a name and whose others are aligned to the right."""
    head = element("thead", element("tr", (element("th", cell) for cell in header)))
    body = element("tbody", (
        element("tr", (element("td", cell) for cell in row)) for row in rows
    ))
    return element("div", element("table", head, body, class_=class_ or None), class_="scroll")


def picture(image: Image.Image, quality: int = 82) -> Markup:
    """An image as the source of an ``img``: the file itself, as WebP."""
    content = io.BytesIO()
    image.convert("RGB").save(content, "WEBP", quality=quality, method=2)
    return Markup("data:image/webp;base64," + base64.b64encode(content.getvalue()).decode())


def link(path: PurePath) -> Markup:
    """The address of a file, relative to the page: no part of it can be taken for a scheme."""
    return Markup(quote(os.fsencode(path.as_posix()), safe="/"))


_OURS = b'<meta charset="utf-8"><meta name="generator" content="CoSA">'


def is_own(path: str | os.PathLike[str]) -> bool:
    """Whether a file is such a page; raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        return _OURS in file.read(200)


def page(title: str, style: str, *children: Any) -> str:
    """A whole page, which loads nothing and runs nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content="CoSA"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("title", title),
        element("style", Markup(style)),
    )
    body = element("body", element("main", children))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"
