"""Which image a labels file means: by any spelling, any machine's path, with suffix or without."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from urllib.parse import unquote

from cosa.core.errors import UserError, did_you_mean
from cosa.data.labels.table import LabelTable, Row, composed

FORMS = (str, composed, lambda name: composed(name).casefold())
"""Spellings that are held against each other: as they are, in one form of Unicode, in one case."""


class Names:
    """A dictionary that forgives how names are spelt; its values must be hashable."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._tables = [defaultdict(set) for _ in FORMS]
        for form, table in zip(FORMS, self._tables, strict=True):
            for name, value in values.items():
                table[form(name)].add(value)

    def find(self, name: str) -> str | None:
        """The value under ``name``, else the only one under it but for Unicode's form and case."""
        for form, table in zip(FORMS, self._tables, strict=True):
            found = table.get(form(name), ())
            if len(found) == 1:
                return next(iter(found))
        return None


def spellings(written: str) -> list[str]:
    """What a labels file may mean by a name, likeliest first, as paths with "/".

    Windows' paths, addresses (``s3://bucket/a.jpg?v=2``), Label Studio's ``/data/local-files/?d=``
    and ``/data/upload/1/ab12cd34-a.jpg``, and percent escapes.
    """
    found = [written.replace("\\", "/")]
    if "?d=" in found[0]:
        found.append(found[0].partition("?d=")[2].partition("&")[0])
    elif "://" in found[0]:
        found.append(re.split("[?#]", found[0].partition("://")[2])[0])
    found += [unquote(name) for name in found if "%" in name]
    uploaded = [re.fullmatch("[0-9a-f]{8}-(.+)", posixpath.basename(name)) for name in found]
    found += [match[1] for match in uploaded if match]
    return list(dict.fromkeys(map(_normal, found)))


def _normal(path: str) -> str:
    """Without "." and "..", and from no folder on in particular."""
    return re.sub(r"^(\.\.?(/|$)|/)+", "", posixpath.normpath(path))


class ImageIndex:
    """Images that are to be found by what labels files call them.

    A name means an image if the one path is the end of the other: ``a.jpg``, ``cats/a`` and
    ``/home/me/photos/cats/a.jpg`` all mean ``cats/a.jpg``, and ``dogs/a.jpg`` does not. Of several
    such images it is the one that shares the longest end, with its folders' names, and no other.

    Args:
        images: key of each image -> (its path below the folder of images, with "/" and suffix; its
            file).
    """

    def __init__(self, images: Mapping[str, tuple[str, Path]]) -> None:
        self._folders = {}
        self._tables = [(defaultdict(list), defaultdict(list)) for _ in FORMS]
        self.names: list[str] = []
        for key, (name, file) in images.items():
            above = [*file.absolute().parts[:-1]]
            below = name.split("/")[:-1]
            self._folders[key] = (below, above[: len(above) - len(below)])
            self.names.append(name)
            whole, stem = name.split("/")[-1], PurePath(name).stem
            for form, (wholes, stems) in zip(FORMS, self._tables, strict=True):
                wholes[form(whole)].append(key)
                stems[form(stem)].append(key)

    def find(self, written: str) -> tuple[list[str], int]:
        """The images that a name may mean, and how many parts of the path they share with it.

        One image: that is it. None: there is none. More: it could be any of them.
        """
        for name in spellings(written):
            for form, tables in zip(FORMS, self._tables, strict=True):
                *folders, last = map(form, name.split("/"))
                for table in tables:
                    found = self._nearest(table.get(last, ()), folders, form)
                    if found[0]:
                        return found
        return [], 0

    def _nearest(
        self, keys: Iterable[str], folders: Sequence[str], form: Callable[[str], str]
    ) -> tuple[list[str], int]:
        ranked = []
        for key in keys:
            below, above = ([form(part) for part in parts] for parts in self._folders[key])
            if _common_end(folders, below) == min(len(folders), len(below)):
                shared = 1 + _common_end(folders, above + below)
                ranked.append((below == folders, shared, key))
        best = max((rank[:2] for rank in ranked), default=(False, 0))
        return [key for *rank, key in ranked if tuple(rank) == best], best[1]


def _common_end(a: Sequence[str], b: Sequence[str]) -> int:
    """How many parts at the end of two paths are the same."""
    count = 0
    for x, y in zip(reversed(a), reversed(b), strict=False):
        if x != y:
            break
        count += 1
    return count


def match_rows(table: LabelTable, index: ImageIndex, all_of_them: bool = True) -> dict[str, Row]:
    """The rows of a table by the key of their image.

    Args:
        all_of_them: a row without an image is an error; else it is left aside.

    Raises:
        UserError: naming the row, if it has no image, could mean several, or the image has a row.
    """
    rows: dict[str, tuple[int, Row]] = {}
    strays: list[Row] = []
    for row in table.rows:
        found, shared = index.find(row.image)
        if not found and row.other:
            found, shared = index.find(row.other)
        if len(found) > 1:
            raise UserError(
                f"{table.where(row)}: the image '{row.image}' could be {found[0]} or {found[1]}: "
                "name it with its folder and suffix"
            )
        if not found:
            strays.append(row)
            continue
        earlier = rows.get(found[0])
        if earlier and earlier[0] == shared:
            raise UserError(f"{table.where(row)}: the image '{row.image}' has a row already; "
                            "remove one")
        if earlier:  # a.jpg of another folder, which is not here
            strays.append(row if earlier[0] > shared else earlier[1])
        if not earlier or shared > earlier[0]:
            rows[found[0]] = (shared, row)
    if strays and all_of_them:
        stray = strays[0]
        raise UserError(
            f"{table.where(stray)}: there is no image '{stray.image}'"
            f"{did_you_mean(stray.image, index.names)}; names are relative to the folder of images"
        )
    return {key: row for key, (_, row) in rows.items()}
