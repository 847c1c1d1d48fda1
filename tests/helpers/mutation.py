"""Seeded damage to text and to trees of plain values, for tests that look for tracebacks."""

from __future__ import annotations

import copy
from random import Random

STRANGE = [
    None, True, False, 0, -1, 2**63, 10**400, 0.5, -1e300, float("nan"), float("inf"), "", "x",
    "\0", "\ud800", "~nobody\0", "a" * 5000, "../..", [], [[]], {}, [None], {"": None}, {"get": 3},
    [[1, "a"]], {"counts": "x"}, {"counts": [-1, 97]}, "2026-99-99", "hf-hub:a/b",
]
"""Values that no program writes where others belong."""

PIECES = [
    b"\0", b"\xff", b'"', b"'", b",", b";", b"\n", b"\r", b":", b"-", b"[", b"]", b"{", b"}", b"<",
    b">", b"&", b"&a ", b"*a", b"!!int x", b"!!python/name:os", b"2026-99-99", b"0o9", b"- ",
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b"9" * 5000, b"[" * 3000, b"NaN", b"1e999", b"null", b"\t",
    b"\\ud800", b"<!DOCTYPE a>", b"~nobody", b"\xe2\x80\xa8",
]
"""What grammars stumble over."""


def damaged_bytes(content: bytes, draw: Random) -> bytes:
    """The content with a few pieces cut out, doubled, replaced or put in."""
    for _ in range(draw.choice([1, 1, 2, 5])):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.choice([0, 0, 1, 3, 20]))
        piece = draw.choice([draw.choice(PIECES), b"", content[start:end] * 2])
        content = content[:start] + piece + content[end:]
    return content


def damaged_tree(tree, draw: Random, strange=STRANGE):
    """A copy of nested dictionaries and lists in which a few values are others, or gone."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice([1, 1, 2])):
        node = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw.choice(keys)
            inner = node[key]
            if isinstance(inner, dict | list) and inner and draw.random() < 0.8:
                node = inner
                continue
            if draw.random() < 0.2:
                del node[key]
            else:
                node[key] = draw.choice(strange)
            break
    return tree
