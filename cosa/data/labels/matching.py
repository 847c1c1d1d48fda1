"""Which image a labels file means: by any spelling, any machine's path, with suffix or without."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
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
        self.names = [name for name, _ in images.values()]
        self._images = images
        self._endings: dict[Callable[[str], str], list[_Endings]] = {}

    def find(self, written: str) -> list[str]:
        """The images that a name may mean. More than one: it could be any of them."""
        for name in spellings(written):
            for form in FORMS:
                for endings in self._table(form):
                    keys = endings.find(form(name))
                    if len(keys) > 1:
                        return self._nearest(keys, form(name), form)
                    if keys:
                        return keys
        return []

    def shared(self, written: str, key: str) -> int:
        """How many parts at their ends a name and the path of an image's file share."""
        return max(self._shared(form(name), key, form)
                   for name in spellings(written) for form in FORMS)

    def _table(self, form: Callable[[str], str]) -> list[_Endings]:
        """Paths in a spelling, with suffix and without; made when they are first asked for."""
        if form not in self._endings:
            whole = {key: form(name) for key, (name, _) in self._images.items()}
            stems = {key: name[: -len(PurePosixPath(name).suffix) or None]
                     for key, name in whole.items()}
            self._endings[form] = [_Endings(whole), _Endings(stems)]
        return self._endings[form]

    def _nearest(self, keys: Iterable[str], name: str, form: Callable[[str], str]) -> list[str]:
        """Those with the same folders and no more, else those that share most with the name."""
        folders = name.split("/")[:-1]
        same = [key for key in keys if form(self._images[key][0]).split("/")[:-1] == folders]
        shared = {key: self._shared(name, key, form) for key in same or keys}
        most = max(shared.values())
        return [key for key, count in shared.items() if count == most]

    def _shared(self, name: str, key: str, form: Callable[[str], str]) -> int:
        above = [form(part) for part in self._images[key][1].absolute().parts[:-1]]
        return 1 + _common_end(name.split("/")[:-1], above)


class _Endings:
    """Paths by all that they end with."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._wholes, self._ends = defaultdict(list), defaultdict(list)
        for key, path in paths.items():
            self._wholes[path].append(key)
            for end in _ends(path):
                self._ends[end].append(key)

    def find(self, path: str) -> list[str]:
        """The keys of the paths that end with this one, or with which it ends."""
        found = dict.fromkeys(self._ends.get(path, ()))
        for end in _ends(path):
            found.update(dict.fromkeys(self._wholes.get(end, ())))
        return list(found)


def _ends(path: str) -> Iterator[str]:
    """The path, and the same without its first folders: a/b/c, b/c, c."""
    yield path
    while "/" in path:
        path = path.partition("/")[2]
        yield path


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
    rows: dict[str, Row] = {}
    strays: list[Row] = []
    for row in table.rows:
        found = index.find(row.image) or (index.find(row.other) if row.other else [])
        if len(found) > 1:
            raise UserError(
                f"{table.where(row)}: the image '{row.image}' could be {found[0]} or {found[1]}: "
                "name it with its folder and suffix"
            )
        if not found:
            strays.append(row)
            continue
        (key,) = found
        earlier = rows.setdefault(key, row)
        if earlier is not row:  # one may be of an image with this name in a folder elsewhere
            further = index.shared(row.image, key) - index.shared(earlier.image, key)
            if further == 0:
                raise UserError(f"{table.where(row)}: the image '{row.image}' has a row already; "
                                "remove one, or join the labels of both in one")
            rows[key], stray = (row, earlier) if further > 0 else (earlier, row)
            strays.append(stray)
    if strays and all_of_them:
        stray = strays[0]
        raise UserError(
            f"{table.where(stray)}: there is no image '{stray.image}'; names are relative to the "
            f"folder of images{did_you_mean(stray.image, index.names)}"
        )
    return rows
