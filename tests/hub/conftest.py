"""A hub on this machine, and a run that was trained."""

from __future__ import annotations

import pytest

import train
from cosa.training.run_folder import RunFolder
from tests.helpers.hub_server import running_hub
from tests.helpers.training import configure


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub(monkeypatch, tmp_path / "hub") as hub:
        yield hub


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a finished run of seconds; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    config = configure(folder, train={"iterations": 4, "evaluate_every": 2})
    assert train.main([config]) == 0
    return RunFolder(folder / "runs" / "tiny")
