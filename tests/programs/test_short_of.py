"""Programs that are short of descriptors, memory or disk say so in one sentence."""

import os
import subprocess
import sys

import pytest

import train
from cosa.checkpoint import read
from cosa.core.errors import UserError
from cosa.training.run_folder import RunFolder
from tests.helpers.limits import largest_file
from tests.helpers.tiny import ROOT
from tests.helpers.training import RANDOM, configure, training_lines

resource = pytest.importorskip("resource")


def limited(program, limit, value):
    """Exit code and standard error of a program under a limit of the system."""
    done = subprocess.run(
        [sys.executable, ROOT / program, "--help"], capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(limit, (value, value)),
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("program", ["train.py", "infer.py"])
def test_few_descriptors(program):
    code, errors = limited(program, resource.RLIMIT_NOFILE, 24)
    assert code == 2 and errors == (
        "error: this process may hold only 24 files open at a time: at least 64 are needed, set "
        "ulimit -n 64 or more\n")


@pytest.mark.skipif(sys.platform != "linux", reason="others do not keep to the limit")
@pytest.mark.parametrize("program", ["train.py", "infer.py"])
def test_too_little_memory_for_the_imports(program):
    code, errors = limited(program, resource.RLIMIT_AS, 10**9)
    assert code == 2 and errors.startswith("error: the memory that this process may use is too")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("size, name", [
    (600_000, "last.pth"), (150_000, "last.pth"), (2000, "config.yaml"), (5000, "metrics.jsonl"),
])
def test_a_disk_that_is_full_loses_nothing(tmp_path, size, name):
    config = configure(tmp_path, model=RANDOM,
                       train={"checkpoint_every": 100, "iterations": 40, "evaluate_every": 0})
    told = f"cannot write .*{name}: .*MiB are free there"
    with pytest.raises(UserError, match=told) as caught, largest_file(size):
        train.main([config])
    assert "\n" not in str(caught.value) and "enforce" not in str(caught.value)
    run = RunFolder(tmp_path / "runs" / "tiny")
    assert not run.last.exists() or read(run.last)
    assert all("loss" in line for line in training_lines(run)) if run.metrics.exists() else True
    assert not run.path.exists() or not [p for p in run.path.iterdir() if p.suffix == ".tmp"]
