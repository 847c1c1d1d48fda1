"""Every option has a sentence below it, as the README promises."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from dataclasses import dataclass

from cosa.config import Config, to_dict


def sentences(section):
    """Field -> the string literal right below it in the source, "" if there is none."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    found = {}
    for statement, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            literal = below.value if isinstance(below, ast.Expr) else None
            there = isinstance(literal, ast.Constant) and isinstance(literal.value, str)
            found[statement.target.id] = literal.value if there else ""
    return found


def options(section, prefix=""):
    """(key, sentence) of each option; sections explain themselves in their class's docstring."""
    kinds, found = typing.get_type_hints(section), sentences(section)
    for field in dataclasses.fields(section):
        kind = kinds[field.name]
        if dataclasses.is_dataclass(kind):
            yield prefix + field.name, kind.__doc__
            yield from options(kind, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, found[field.name]


def without_a_sentence(section):
    return [key for key, text in options(section)
            if len(text.split()) < 2 or not text.strip().endswith(".")]


def test_every_option_has_a_sentence():
    assert without_a_sentence(Config) == []


def test_no_option_is_overlooked():
    def keys(tree, prefix=""):
        for key, value in tree.items():
            yield prefix + key
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")

    assert [key for key, _ in options(Config)] == list(keys(to_dict(Config())))


@dataclass(frozen=True)
class Section:
    """A section."""

    told: int = 0
    """How many."""
    silent: int = 1
    unfinished: int = 2
    """Half a"""
    # A comment is no sentence.
    last: int = 3


def test_options_without_a_sentence_are_found():
    assert without_a_sentence(Section) == ["silent", "unfinished", "last"]
