"""What docs/data.md tells a user to write is accepted."""

import re
import shlex
from pathlib import Path

import pytest

import train
from cosa.config import load_config
from cosa.config.sections import DataConfig
from cosa.data.labels import read_labels
from cosa.data.labels.label_fields import SEPARATORS
from tests.helpers.tiny import ROOT

TEXT = (ROOT / "docs/data.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "train", lambda config, run, resume: config)
    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("python", "train.py")
    assert train.main(arguments).data.root.startswith("/data/")


def test_keys_in_the_tables_exist():
    keys = set(re.findall(r"`(\w+): ", TEXT)) | set(re.findall(r"`data\.(\w+)`", TEXT))
    assert {"labels", "masks", "val_images", "label_separator"} <= keys
    assert keys - {"cats"} <= set(DataConfig.__dataclass_fields__)


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert "://" in link or (ROOT / "docs" / link).exists(), link


@pytest.mark.parametrize("number, kind", [(0, "labels between ';'"), (1, "one column per class")])
def test_tables_are_read(tmp_path, number, kind):
    Path(tmp_path, "x.csv").write_text(blocks("csv")[number])
    table = read_labels(tmp_path / "x.csv")
    assert [(row.image, row.labels) for row in table.rows] == [
        ("cats/a.jpg", ["cat", "sofa"]), ("b.png", ["dog"])]
    assert kind in table.kind


def test_separators_are_those_of_the_option():
    listed = re.search(r"`data\.label_separator`, which is one of (.*?) \(", TEXT, re.DOTALL)[1]
    assert set(re.findall("`([^`]+)`", listed)) == set(SEPARATORS)
    for separator in SEPARATORS:
        load_config(None, [f"data.label_separator='{separator}'"])
