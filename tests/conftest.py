"""Fixtures: one thread, the programs as they are started, a tiny network's weights."""

from __future__ import annotations

import runpy
import sys
from functools import partial

import pytest
import torch

from tests.helpers.inference import run_main, save_smooth, write_weights
from tests.helpers.tiny import ROOT


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny tensors gain nothing from threads, and their sums would depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path):
    """A config file of its own: the tests do not depend on the demo's numbers."""
    path = tmp_path / "tiny.yaml"
    path.write_text("name: tiny\ndata: {name: scenes}\n"
                    "evaluate: {coexistence_classes: [boat, train, bird]}\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def command_line(monkeypatch, capfd):
    """Run train.py or infer.py as the command line does: exit code, stdout, stderr."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        return left.value.code, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of a tiny network's weights, for infer.py."""
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.pt")


@pytest.fixture
def photos(request, tmp_path):
    """A folder of the images that the module names in NAMES, each of its own size."""
    for k, name in enumerate(request.module.NAMES):
        save_smooth(tmp_path / "in" / name, (40 + k, 30), seed=k)
    return tmp_path / "in"


@pytest.fixture
def program(weights, capfd):
    """infer.py in this process: exit code, stdout, stderr."""

    def run(source, output, *options):
        return run_main(weights, source, output, *options), *capfd.readouterr()

    return run


@pytest.fixture
def train_program(command_line):
    """Run train.py as the command line does: exit code, stdout, stderr."""
    return partial(command_line, "train.py")
