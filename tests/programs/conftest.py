"""Fixtures of the programs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import train
from cosa.training.run_folder import RunFolder
from tests.helpers.tiny import ROOT
from tests.helpers.training import RANDOM, configure, environment, stop_after


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run stopped after 4 of its 12 iterations."""
    config = configure(tmp_path)
    stop_after(monkeypatch, 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train.main([config]) == 128 + signal.SIGINT
    monkeypatch.undo()
    return RunFolder(tmp_path / "runs" / "tiny")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A whole run by a process of its own, never interrupted: (its folder, its output)."""
    folder = tmp_path_factory.mktemp("whole")
    config = configure(folder, model=RANDOM, train={"evaluate_every": 6})
    command = [sys.executable, str(ROOT / "train.py"), config]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return RunFolder(folder / "runs" / "tiny"), done
