"""All text for people goes through ``cosa.core.terminal``, which makes it text."""

import ast

import pytest

from tests.helpers.tiny import ROOT

OWN = {"print", "tqdm", "tqdm.write", "bar.write", "argparse.ArgumentParser", "warnings.warn",
       "sys.stdout.write", "sys.stderr.write"}
"""Calls for which there is ``say``, ``note``, ``warn``, ``progress_bar`` and ``Parser``."""

MACHINES = {"cosa/benchmark/timings/steps.py": ["print(json.dumps("]}
"""Where something is printed for another program, and how it begins."""


def calls(source):
    """The calls of ``OWN`` in a program's text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in OWN:
            yield ast.unparse(node)


def programs():
    paths = [*(ROOT / "cosa").rglob("*.py"), ROOT / "train.py", ROOT / "infer.py"]
    names = (path.relative_to(ROOT).as_posix() for path in paths)
    return sorted(name for name in names if not name.startswith("cosa/core/"))


@pytest.mark.parametrize("name", programs())
def test_nothing_is_printed_by_other_ways(name):
    found = [*calls((ROOT / name).read_text(encoding="utf-8"))]
    allowed = MACHINES.get(name, [])
    assert len(found) == len(allowed), f"{name}: use cosa.core.terminal for {found}"
    assert all(call.startswith(start) for call, start in zip(found, allowed, strict=True))


def test_another_way_would_be_found():
    source = "import sys\nfor bar in ():\n    sys.stderr.write(f'{bar}')\n    print(bar)\n"
    assert [*calls(source)] == ["sys.stderr.write(f'{bar}')", "print(bar)"]
