"""What only benchmarks and tests need is not loaded, nor needed, by who trains and segments."""

import ast
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
BENCHMARKS_ONLY = {"sklearn", "scipy", "fvcore"}
LOOK = "import train, infer, sys; print(*sorted(sys.modules))"


def test_train_and_infer_load_none_of_it():
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=PROJECT, check=True, text=True,
                          capture_output=True)
    loaded = set(done.stdout.split())
    assert {"train", "infer", "torch", "cosa.network"} <= loaded
    # Other libraries may load scipy on their own.
    assert not loaded & {"sklearn", "fvcore", "cosa.benchmark"}


def test_only_benchmarks_import_it():
    files = [PROJECT / "train.py", PROJECT / "infer.py", *(PROJECT / "cosa").rglob("*.py")]
    found = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if (package := name.partition(".")[0]) in BENCHMARKS_ONLY:
                    found.setdefault(package, set()).add(path.relative_to(PROJECT).as_posix())
    assert set(found) == BENCHMARKS_ONLY
    users = set().union(*found.values())
    assert all(user.startswith("cosa/benchmark/") for user in users), users
