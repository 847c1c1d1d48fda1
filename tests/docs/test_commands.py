"""Whatever README.md and docs/ tell a user to type is accepted by the programs."""

import argparse
import importlib.util
import re
import runpy
import sys
from pathlib import Path

import pytest

import infer
import train
from cosa.config import Config, load_config
from cosa.data.labels import read_labels
from cosa.data.scenes.dataset import main as write_scenes
from cosa.training.run_folder import RunFolder
from tests.helpers.pages import PAGES, cases
from tests.helpers.tiny import ROOT

KNOWN = ("make", "pip install", "python train.py", "python infer.py", "python -m", "torchrun",
         "hf download", "mv", "tensorboard")
OTHERS = ("pytest",)
"""Modules that are no programs of this project."""


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_of_a_known_kind(page):
    for line in page.lines:
        bare = re.sub(r"^([A-Z_]+=\S* )+", "", line)
        assert any(bare == start or bare.startswith(f"{start} ") for start in KNOWN), line


@pytest.mark.parametrize("page, arguments", cases("python train.py"))
def test_train(page, arguments, monkeypatch):
    monkeypatch.setattr(RunFolder, "reopen", lambda run, overrides: load_config(None, overrides))
    monkeypatch.setattr(train, "train", lambda config, run, resume: (config, run, resume))
    config, run, resume = train.main(arguments)
    assert isinstance(config, Config)
    assert resume == ("--resume" in arguments)
    if resume:
        assert run.path.parts[0] == "runs"


@pytest.mark.parametrize("page, arguments", cases("python infer.py"))
def test_infer(page, arguments):
    given = infer.parse(arguments)
    assert given.input and given.weights and given.output


def test_torchrun(monkeypatch):
    """The options are torchrun's, the programs take what comes after their names."""
    launcher = pytest.importorskip("torch.distributed.run").get_args_parser()
    programs = set()
    for page, arguments in cases("torchrun"):
        given = launcher.parse_args(arguments)
        programs.add(given.training_script)
        if given.training_script == "train.py":
            test_train(page, given.training_script_args, monkeypatch)
        else:
            test_infer(page, given.training_script_args)
    assert programs == {"train.py", "infer.py"}


class Parsed(BaseException):
    """The arguments were accepted; nothing more is to be done."""


def accepted(arguments, monkeypatch):
    """What ``python -m`` with these arguments makes of them, before it does anything."""

    def only(read):
        def read_only(self, args=None, namespace=None):
            given = read(self, args, namespace)
            if hasattr(given, "command"):  # of cosa.benchmark, which hands on what follows
                return given
            raise Parsed(given)

        return read_only

    with monkeypatch.context() as patched:
        for name in ("parse_args", "parse_intermixed_args"):
            read = getattr(argparse.ArgumentParser, name)
            patched.setattr(argparse.ArgumentParser, name, only(read))
        patched.setattr(sys, "argv", arguments)
        with pytest.raises(Parsed) as caught:
            runpy.run_module(arguments[0], run_name="__main__")
    return caught.value.args[0]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("page, arguments", [
    case for case in cases("python -m") if case[1][0] not in OTHERS and len(case[1]) > 1
])
def test_modules(page, arguments, monkeypatch):
    """The options are known, and so are the keys of a configuration."""
    given = accepted(arguments, monkeypatch)
    said = getattr(given, "words", None)
    if said is None:
        said = [getattr(given, "config", None), *(getattr(given, "overrides", None) or ())]
    said = [word for word in said if word]
    path = said.pop(0) if said and "=" not in said[0] else None
    assert isinstance(load_config(path, said), Config)


def test_what_a_program_refuses_is_noticed(monkeypatch, capfd):
    for wrong in ("cosa.export --weights x --frmat onnx", "cosa.benchmark ablation --rows"):
        with pytest.raises(SystemExit):
            accepted(wrong.split(), monkeypatch)


def test_modules_that_are_named_alone():
    for _, arguments in cases("python -m"):
        assert importlib.util.find_spec(arguments[0]), arguments


def test_scenes_are_written_as_folder_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _, arguments in cases("python -m cosa.data.scenes"):
        assert write_scenes(arguments) == 0
        count = int(arguments[arguments.index("--count") + 1])
        assert len(list(Path(arguments[0], "images").iterdir())) == count
        assert len(read_labels(Path(arguments[0], "labels.csv")).rows) == count


def test_pip_and_make():
    for _, arguments in cases("pip install -r"):
        assert (ROOT / arguments[0]).exists()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for _, arguments in cases("make"):
        assert re.search(f"^{arguments[0]}:", makefile, re.MULTILINE), arguments
