"""What docs/annotators.md tells a user to write is accepted, and does what it says."""

import re
import runpy
import shlex

import pytest

import infer
from cosa.export.annotations import FORMATS
from tests.helpers.inference import files, save_smooth
from tests.helpers.tiny import ROOT

TEXT = (ROOT / "docs/annotators.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


COMMANDS = "".join(blocks("bash")).replace("\\\n", " ").splitlines()


def test_commands():
    given = [infer.parse(words[2:]) for words in map(shlex.split, COMMANDS)]
    assert {name for options in given for name in options.export} == set(FORMATS)
    assert given[-1].save == ("mask", "index") and given[4].image_prefix.endswith("?d=photos/")


def test_the_page_from_the_command_to_the_files(tmp_path, weights, program, monkeypatch, capfd):
    pytest.importorskip("pycocotools")
    monkeypatch.chdir(tmp_path)
    for name in ("a/b.jpg", "c.png"):
        save_smooth(tmp_path / "photos" / name, seed=len(name))
    for command in (words for words in map(shlex.split, COMMANDS) if words[2] == "photos"):
        places = command.index("--weights"), command.index("--output")
        options = [word for number, word in enumerate(command[3:], start=3)
                   if number not in {place + k for place in places for k in (0, 1)}]
        assert program("photos", command[places[1] + 1], *options)[0] == 0
    rows = re.findall(r"^\| `\w+` +\| (.*?) *\|", TEXT, re.MULTILINE)
    promised = re.findall("`([^`]+)`", " ".join(rows))
    there = files(tmp_path / "masks")
    assert {name for name in promised if "labelstudio" not in name} <= {*there}
    for text in blocks("python"):
        (tmp_path / "example.py").write_text(text, encoding="utf-8")
        capfd.readouterr()
        made = runpy.run_path("example.py")
        printed = capfd.readouterr().out
        assert "a/b.jpg" in printed or made["size"] == (40, 30)
