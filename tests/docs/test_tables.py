"""Tables of options, scores, files and presets say what the programs have."""

import re

import pytest

import infer
from cosa.crf import PRESETS
from cosa.evaluate import evaluate
from cosa.export.command import main as export
from cosa.hub.push import main as push
from cosa.inference.kinds import KINDS
from cosa.training.run_folder import RunFolder
from tests.helpers.pages import page

OPTION = r"--[a-z][a-z-]*"


@pytest.mark.parametrize("name, program", [
    ("docs/inference.md", infer.parse), ("docs/export.md", export),
    ("docs/hub.md", lambda words: push(["push", *words])),
])
def test_all_options_are_listed(name, program, capsys):
    with pytest.raises(SystemExit):
        program(["--help"])
    offered = set(re.findall(OPTION, capsys.readouterr().out)) - {"--help"}
    assert set(re.findall(OPTION, " ".join(page(name).column("option")))) == offered


def test_all_results_are_listed():
    listed = [cell.strip("`") for cell in page("docs/inference.md").column("`--save`")]
    assert set(listed) == set(KINDS)


def test_presets_are_listed():
    crf = page("docs/crf.md")
    rows = zip(*(crf.column("preset", number) for number in range(4)), strict=True)
    assert {name.strip("`"): (int(count), gaussian, bilateral)
            for name, count, gaussian, bilateral in rows} == {
        name: (preset["iterations"], *(" ".join(map(str, preset[key]))
                                       for key in ("gaussian", "bilateral")))
        for name, preset in PRESETS.items()}


def test_scores_and_run_files_exist():
    training = page("docs/training.md")
    scores = re.findall(r"`(\w+)`", " ".join(training.column("name")))
    assert scores[0] == "miou"
    for score in scores:
        assert f"``{score}``" in evaluate.__doc__, score
    run = vars(RunFolder("runs/x"))
    files = {path.name for key, path in run.items() if key != "path"}
    listed = re.findall(r"`([^`]+)`", " ".join(training.column("file")))
    assert files <= {name.rstrip("/") for name in listed}
