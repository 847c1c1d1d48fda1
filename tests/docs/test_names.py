"""What the pages name exists: files, functions, keys, messages; and they name what exists."""

import ast
import importlib
import inspect
import re

import pytest

from cosa.config import Config, load_config, to_dict
from tests.helpers.pages import PAGES, README, page
from tests.helpers.tiny import ROOT

SUFFIXES = ("py", "txt", "json", "yaml", "safetensors")
"""Of files, which look like keys."""

NAMED = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def found(name):
    """The module, class or function of a dotted name, and the module that it is in."""
    _, *parts = name.split(".")
    module, path = importlib.import_module("cosa"), "cosa"
    while parts:
        try:
            module = importlib.import_module(f"{path}.{parts[0]}")
        except ImportError:
            break
        path = f"{path}.{parts.pop(0)}"
    value = module
    for part in parts:
        value = getattr(value, part)
    return value, module


@NAMED
def test_names_in_the_code_exist(page):
    for name in page.inline:
        if re.fullmatch(r"cosa(\.\w+)+", name):
            found(name)


@NAMED
def test_files_in_the_text_exist(page):
    for name in page.inline:
        if re.fullmatch(r"(cosa|configs|docs|tests)/[\w./-]*", name):
            assert (ROOT / name).exists(), name


@NAMED
def test_config_keys_in_the_text_exist(page):
    sections = to_dict(Config())
    for text in page.inline:
        keys = [re.fullmatch(r"([a-z]+)\.(\w+)(=\S+)?", word) for word in text.split()]
        if not all(keys) or any(key[1] not in sections or key[2] in SUFFIXES for key in keys):
            continue
        for key in keys:
            assert key[2] in sections[key[1]], text
        if not re.search(r"\.\.\.|=[A-Z]\b", text):  # what stands for a value
            load_config(None, [key[0] for key in keys if key[3]])


def test_tests_of_names_have_names_to_look_at():
    inline = {text for one in PAGES for text in one.inline}
    assert {"cosa.losses.cam_to_seg", "cosa/checkpoint/released.py", "train.precision",
            "threshold.dynamic=false"} <= inline


def test_equations_are_named_where_they_are():
    """Each function of the table says its equation, or its module does."""
    table = re.findall(r"^\| (Eq\. [^|]+?) +\|[^|]*\| \[`([\w.]+)`\]\(([\w/.]+)\) \|$",
                       README.text, re.MULTILINE)
    assert len(table) == 10
    for equations, name, path in table:
        value, module = found(name)
        assert module.__file__ == str(ROOT / path)
        told = f"{inspect.getdoc(value)} {module.__doc__}"
        told = re.sub(r"(\(\d+\)) and (\(\d+\))", r"\1 Eq. \2", told)
        assert equations in told, name


def test_sections_of_the_configuration_are_listed():
    rows = page("docs/training.md").column("section")
    assert re.findall(r"`(\w+)`", " ".join(rows)) == list(to_dict(Config()))


def test_regularizers_are_listed():
    rows = page("docs/regularizers.md").column("section of `regularizers`")
    assert [row.strip("`") for row in rows] == list(to_dict(Config())["regularizers"])


def test_the_tree_leaves_no_file_out():
    (tree,) = (text for text in page("docs/code.md").blocks("text") if text.startswith("train.py"))
    named = re.findall(r"(?:^|  )((?:[\w.-]+/)*[\w.-]+(?:\.py|/))(?=\s)", tree, re.MULTILINE)
    for path in named:
        assert (ROOT / path).exists(), path
    modules = {f"cosa/{path.name}" for path in (ROOT / "cosa").glob("*.py")}
    folders = {f"cosa/{path.parent.name}/" for path in (ROOT / "cosa").glob("*/__init__.py")}
    assert (modules | folders) - set(named) == {"cosa/__init__.py"}


# Messages


def text_of(node):
    """A string of the source as one line, what is put into it as a blank; None for others."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or " " for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{text_of(node.left) or ' '}{text_of(node.right) or ' '}"
    return None


def sentences_of_the_program():
    for path in [ROOT / "train.py", ROOT / "infer.py", *sorted((ROOT / "cosa").rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = text_of(node)
            if text and " " in text:
                yield text


def test_messages_are_those_of_the_program():
    trouble = page("docs/troubleshooting.md")
    rows = [line for line in trouble.prose.splitlines() if line.startswith("| `")]
    messages = [re.match(r"\| `([^`]+)` \|", row)[1] for row in rows]
    assert len(messages) > 50
    sentences = list(sentences_of_the_program())
    for message in messages:
        parts = [part for part in message.replace("name=...", "name=").split("...") if part.strip()]
        pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        assert any(map(pattern.search, sentences)), message
