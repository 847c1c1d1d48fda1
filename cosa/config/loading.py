"""From defaults, YAML files and ``key=value`` to a typed configuration, and back.

Unknown keys and wrong types fail at start-up, naming the key and the nearest known one.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from cosa.config.sections import Config
from cosa.core.declared import Misfit, check, shown
from cosa.core.errors import UserError, did_you_mean
from cosa.core.foreign import Written, parse_yaml, read_text
from cosa.core.ranges import DOMAIN

MOST_BYTES = 250_000
"""Of a configuration; the whole of one has 7,000."""

FORMERLY = {
    "normalization": "imagenet",
    "output_stride": 0,
    "aux_stage": -2,
    "freeze_batch_norm": True,
    "pooling": "max",
    "aux_pooling": "max",
    "class_offset": False,
    "cam_steps": 0,
    "seg_steps": 0,
    "early_layer": -3,
    "affinity_power": 4.0,
    "aux_affinity_power": 0.0,
    "decoder_aux": False,
    "decoder_stride": 0,
    "freeze_layers": 0,
}
"""Keys of ``model`` that came later, with what all files without them mean."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file over the defaults, and ``section.key=value`` overrides over both.

    Args:
        path: YAML file; None gives the defaults. Its key ``base`` may name another file, relative
            to it, that it changes.
        overrides: such as ``"optimizer.lr=1e-4"``; values are read as YAML, those of keys that
            hold text are taken as they are, or without the quotes around them.

    Raises:
        UserError: no such file, not YAML, unknown key, wrong type, impossible value.
    """
    tree = {} if path is None else _read_with_base(Path(path))
    return _overridden(tree, overrides, str(path) if path else "the configuration")


def load_saved(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """``load_config`` of a file that a training run saved, this version's or an earlier one's.

    Raises:
        UserError: see :func:`load_config`.
    """
    return _overridden(upgraded(_read_with_base(Path(path))), overrides, str(path))


def upgraded(tree: Any) -> Any:
    """A configuration that an earlier version saved, as nested dictionaries, with today's keys.

    Saved configurations are complete: one without a key of ``FORMERLY`` is from when there was
    but one way. What is no such tree is returned as it is.
    """
    model = tree.get("model") if isinstance(tree, dict) else None
    if not isinstance(model, dict):
        return tree
    return {**tree, "model": {**FORMERLY, **model}}


def _overridden(tree: dict[str, Any], overrides: Sequence[str], source: str) -> Config:
    keys = []
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise UserError(f"'{item}' is not an override: write it as section.key=value")
        keys.append(key)
        value = _parse(key, text)
        section, _, last = key.partition(".")
        _make_room(tree, {section: {last: value}})
        _set(tree, key, value, source)
    return _build(Config, tree, "", Source(source, keys))


@dataclasses.dataclass(frozen=True)
class Source:
    """Where values come from: a file, and over it what the command line says of some keys."""

    file: str
    overridden: Sequence[str] = ()

    def of(self, key: str) -> str:
        """Where the value of a key, or any in a section, comes from, for people."""
        return self._told(any(f"{other}.".startswith(f"{key}.") or _within(key, other)
                              for other in self.overridden))

    def of_any(self, keys: Sequence[str]) -> str:
        """The same of several keys: the command line, if one of them is from there."""
        return self._told(any(_within(key, other) for key in keys for other in self.overridden))

    def _told(self, overridden: bool) -> str:
        return "on the command line" if overridden else f"in {self.file}"


def _within(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def from_dict(tree: dict[str, Any], source: str = "the configuration") -> Config:
    """Build a Config from nested dictionaries; the inverse of :func:`to_dict`.

    Raises:
        UserError: unknown key, wrong type, impossible value.
    """
    return _build(Config, tree, "", Source(source))


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dictionaries of plain YAML types; the inverse of :func:`from_dict`."""
    out: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        out[item.name] = to_dict(value) if dataclasses.is_dataclass(value) else _plain(value)
    return out


def each_option(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, value and domain (``cosa.core.ranges``; None without one) of each option, in order."""
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            yield from each_option(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value, item.metadata.get(DOMAIN)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML text."""
    tree = to_dict(config)
    if config.train.passes:
        del tree["train"]["iterations"]  # which say nothing then
    return yaml.safe_dump(tree, sort_keys=False)


def _read_with_base(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The tree of a file over that of its base, and so on."""
    if path.resolve() in seen:
        raise UserError(f"{path} is its own base: remove its key 'base'")
    tree = _read_yaml(path)
    base = _as_declared(str, tree.pop("base", None))
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"'base' in {path} must name a YAML file, not {shown(base)}")
    below = _read_with_base(path.parent / base, (*seen, path.resolve()))
    _make_room(below, tree)
    return _merged(below, tree)


def _make_room(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Of the two keys for the length of a training the one counts that is given last."""
    given, former = _length(above), _length(below)
    if "iterations" in given:
        former.pop("passes", None)
    if _passes(given):
        former.pop("iterations", None)


def _length(tree: dict[str, Any]) -> dict[str, Any]:
    """The section of the length; something empty where that is no section."""
    found = tree.get("train")
    return found if isinstance(found, dict) else {}


def _passes(length: dict[str, Any]) -> Any:
    """Those of a section, true unless it gives none."""
    return _as_declared(float, length.get("passes", 0.0))


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    tree = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = _merged(tree[key], value) if both else value
    return tree


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path, "the configuration", "check the path", most=MOST_BYTES)
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold `key: value` lines, not a {type(tree).__name__}")
    length = _length(tree)
    if _passes(length) and "iterations" in length:
        raise UserError(f"{path} sets train.passes and train.iterations, which says the same: "
                        "remove one of them")
    return tree


def _parse(key: str, text: str) -> Any:
    """The value of a key on the command line."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if _kind(key) is str and not quoted:
        return text
    try:
        return parse_yaml(text)
    except ValueError as error:
        item = " ".join(f"{key}={text}"[:80].split())
        raise UserError(f"the value in '{item}' is not valid YAML ({error}): quote it") from error


def _kind(key: str) -> Any:
    """The declared type of a key; None if there is none."""
    kind = Config
    for part in key.split("."):
        kind = typing.get_type_hints(kind).get(part) if dataclasses.is_dataclass(kind) else None
    return kind


def _set(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"'{section}' in {source} is no section: cannot set '{key}'")
    tree[last] = value


def _build(cls: type, tree: Any, prefix: str, source: Source) -> Any:
    if not isinstance(tree, dict):
        key = prefix.rstrip(".")
        raise UserError(f"'{key or source.file}' {source.of(key)} must be a section of "
                        "`key: value` lines")
    kinds = typing.get_type_hints(cls)
    values = {}
    for key, value in tree.items():
        if key not in kinds:
            raise UserError(_unknown(f"{prefix}{str(key)[:80]}", source))
        kind = kinds[key]
        if dataclasses.is_dataclass(kind):
            values[key] = _build(kind, value, f"{prefix}{key}.", source)
        else:
            values[key] = _convert(kind, value, f"{prefix}{key}", source)
    try:
        return cls(**values)
    except ValueError as error:
        named = [prefix + word for word in re.findall(r"\w[\w.]*\w", str(error))]
        raise UserError(f"{prefix}{error} ({source.of_any(named)})") from error


def _unknown(key: str, source: Source) -> str:
    known = list(_all_keys(Config))
    # The right word in the wrong section is meant more often than the nearest spelling.
    moved = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"unknown key '{key}' {source.of(key)}{did_you_mean(key, moved or known, cutoff=0.0)}"


def _all_keys(cls: type, prefix: str = "") -> typing.Iterator[str]:
    for name, kind in typing.get_type_hints(cls).items():
        yield f"{prefix}{name}"
        if dataclasses.is_dataclass(kind):
            yield from _all_keys(kind, f"{prefix}{name}.")


def _convert(kind: Any, value: Any, key: str, source: Source) -> Any:
    value = _as_declared(kind, value)
    try:
        check(kind, value)
    except Misfit as error:
        raise UserError(f"'{key}'{error.place} {source.of(key)} {error.told}") from error
    return value


def _as_declared(kind: Any, value: Any) -> Any:
    """Lists as tuples, names as they are written, and floats: 1e-4 is a string in YAML 1.1."""
    if isinstance(value, list | tuple):
        kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        element = next((typing.get_args(k)[0] for k in kinds if typing.get_origin(k) is tuple), Any)
        return tuple(_as_declared(element, item) for item in value)
    if isinstance(value, dict):
        return {_as_declared(Any, key): _as_declared(Any, item) for key, item in value.items()}
    if isinstance(value, Written):
        value = value.text if kind is str else value.value
    read = {float: (int, str), int | float: (str,)}.get(kind, ())
    if type(value) in read:
        with suppress(ValueError, OverflowError):
            return float(value)
    return value
