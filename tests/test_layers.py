"""Who may import whom: a table, which the imports of all modules are held against."""

import ast
from pathlib import Path

import pytest

from tests.helpers.tiny import ROOT

METHOD = (
    "affinity", "decoder", "network", "ema", "cam", "present", "predict", "targets", "threshold",
    "losses", "terms", "mixture",
)
STEP = (*METHOD, "regularizers", "cotrain")
RESULTS = ("crf", "metrics", "score_names", "scores", "evaluate")
SERVING = ("core", "config", "data", "pictures", "checkpoint", "encoders", "lattice")

MAY_SEE = {
    "core": (),
    "config": ("core",),
    "lattice": ("core",),
    "encoders": ("core",),
    # The method takes tensors and keyword arguments: neither data nor configuration.
    **{module: ("core", "encoders", *METHOD) for module in METHOD},
    "regularizers": ("core", "lattice", *METHOD),
    "cotrain": ("core", "regularizers", *METHOD),
    "crf": ("core", "lattice"),
    "metrics": ("core",),
    "score_names": ("core",),
    "scores": ("core", "cam", "predict", "metrics", "score_names"),
    "pictures": ("core", "cam", "predict", "targets"),
    "data": ("core", "config", "pictures"),
    "evaluate": ("core", "cam", "predict", "metrics", "scores", "data"),
    "checkpoint": ("core", "config", "data", "encoders", "network", "pictures"),
    "training": (*SERVING, *STEP, *RESULTS),
    "pages": ("core",),
    "report": ("core", "config", "pages", "score_names", "training"),
    "inference": (*SERVING, *METHOD, *RESULTS, "export", "pages"),
    "export": (*SERVING, *METHOD),
    "hub": (*SERVING, "score_names", "training"),
    "distill": (*SERVING, *STEP, *RESULTS, "training", "inference"),
    "benchmark": (*SERVING, *STEP, *RESULTS, "training", "inference", "export"),
    "__init__": ("checkpoint",),
}
"""Module or folder of cosa/ -> those it may import from, beside itself."""

NO_PROCESSES = (*METHOD, "regularizers", "cotrain", "crf", "metrics", "scores")
"""They know nothing of the processes that share the work."""


def part_of(module):
    """The module or folder of cosa/ that a dotted name belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def imports(path):
    """The full names that a file imports from this project, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it leads"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def within_cosa(path):
    return [name for name in imports(path) if name == "cosa" or name.startswith("cosa.")]


def modules():
    for path in sorted((ROOT / "cosa").rglob("*.py")):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


@pytest.mark.parametrize("module, path", [*modules()], ids=lambda value: str(value)[:0] or None)
def test_imports_point_downward(module, path):
    own = part_of(module)
    allowed = {own, *MAY_SEE[own]}
    seen = {part_of(name) for name in within_cosa(path)} - {"__init__"}
    assert seen <= allowed, f"{module} must not import {', '.join(sorted(seen - allowed))}"


def test_the_table_has_no_circle():
    done, left = set(), dict(MAY_SEE)
    # Within the method everything may see everything: Python itself refuses circles there.
    left = {name: set(seen) - set(METHOD) if name in METHOD else set(seen)
            for name, seen in left.items()}
    while left:
        free = {name for name, seen in left.items() if seen <= done}
        assert free, f"these see each other in a circle: {sorted(left)}"
        done |= free
        left = {name: seen for name, seen in left.items() if name not in free}


def test_every_part_has_a_place_in_the_table():
    assert {part_of(module) for module, _ in modules()} == set(MAY_SEE)


@pytest.mark.parametrize("module, path", [
    (module, path) for module, path in modules() if part_of(module) in NO_PROCESSES
], ids=lambda value: str(value)[:0] or None)
def test_the_method_does_not_know_of_processes(module, path):
    assert not any("distributed" in name.split(".") for name in within_cosa(path))


@pytest.mark.parametrize("path", [*(ROOT / "cosa").rglob("*.py")], ids=lambda path: path.stem)
def test_the_package_does_not_import_its_scripts(path):
    assert not {"train", "infer", "tests"} & {name.split(".")[0] for name in imports(path)}


def test_no_test_imports_another():
    for path in (ROOT / "tests").rglob("*.py"):
        names = [name for name in imports(path) if name.startswith("tests.")]
        assert all(name.startswith("tests.helpers") for name in names), (path, names)


def test_an_upward_import_would_be_found(tmp_path):
    path = tmp_path / "losses.py"
    path.write_text("def f():\n    from cosa.data.base import FileDataset\n")
    (name,) = within_cosa(Path(path))
    assert part_of(name) == "data" and "data" not in MAY_SEE["losses"]
