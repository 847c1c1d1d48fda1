"""Names of files and classes that hold control characters, as a user meets them: printed."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from cosa.benchmark.__main__ import main as benchmark
from cosa.core.errors import run_program
from cosa.data.scenes.dataset import ScenesDataset
from tests.helpers.hostile import CLASS, CLASS_SHOWN, HOSTILE, SHOWN, assert_text
from tests.helpers.inference import save, write_weights
from tests.helpers.training import configure

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs names of any characters")


def test_infer(tmp_path, command_line):
    weights = write_weights(tmp_path / "w.pt", classes=(CLASS, "日本", "x" * 100_000))
    save(tmp_path / "in/b.png")
    try:
        (tmp_path / f"in/{HOSTILE}.png").write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system knows Unicode only")
    (tmp_path / "truth").mkdir()
    truth = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20) % 4
    Image.fromarray(truth).save(tmp_path / "truth/b.png")
    code, out, err = command_line(
        "infer.py", tmp_path / "in", "--weights", weights, "--output", tmp_path / HOSTILE,
        "--evaluate", tmp_path / "truth", "--json", tmp_path / "s.json", "--device", "cpu",
    )
    assert code == 1
    assert_text(out + err)
    assert err.startswith(f"failed: {tmp_path}/in/{SHOWN}.png") and err.count("\n") == 1
    head, table, *rows = out.split("\n")
    assert head.endswith(f"masks are in {tmp_path}/{SHOWN}")
    names = ("background", CLASS_SHOWN, "日本", f"{'x' * 36} [...] {'x' * 37}")
    assert table.split() == ["class", "IoU", "F"]
    for name, row in zip(names, rows, strict=False):
        assert row.startswith(name + "  ")
    assert "mIoU (J)" in out
    # Files for machines have the names themselves.
    content = json.loads((tmp_path / "s.json").read_text())
    assert [entry["path"] for entry in content["images"]] == [f"{HOSTILE}.png", "b.png"]
    assert content["run"]["output"] == str(tmp_path / HOSTILE)
    assert list(content["run"]["scores"]["iou"])[1] == CLASS


def test_train(tmp_path, train_program, monkeypatch):
    first = ScenesDataset.__init__

    def renamed(self, *arguments, **options):
        first(self, *arguments, **options)
        self.classes = (HOSTILE, "y" * 5000, *self.classes[2:])

    monkeypatch.setattr(ScenesDataset, "__init__", renamed)
    config = configure(tmp_path, train={"iterations": 2, "evaluate_every": 1})
    code, out, err = train_program(config)
    assert code == 0, err
    assert_text(out + err)
    assert f"\n{SHOWN}  " in out and f"\n{'y' * 36} [...] {'y' * 37}  " in out
    scores = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    assert list(scores["iou"])[1] == HOSTILE
    code, out, err = train_program("--resume", tmp_path / "runs/tiny", f"{HOSTILE}=1")
    assert code == 2 and err.count("\n") == 1
    assert_text(out + err)


@pytest.mark.parametrize("program, arguments", [
    ("train.py", [f"{HOSTILE}.yaml"]),
    ("train.py", [f"--{HOSTILE}"]),
    ("train.py", ["--resume", HOSTILE]),
    ("train.py", [HOSTILE + "x" * 9000]),
    ("infer.py", [HOSTILE, "--weights", HOSTILE, "--output", "o"]),
    ("infer.py", ["in", "--weights", "w", "--output", "o", "--save", HOSTILE]),
    ("infer.py", ["in", "--weights", "w", "--output", "o", "--size", HOSTILE]),
    ("infer.py", ["in", "--weights", "w", "--output", "o", HOSTILE + "x" * 9000]),
])
def test_words_of_the_command_line(command_line, tmp_path, monkeypatch, program, arguments):
    code, out, err = command_line(program, *arguments)
    assert code == 2 and out == ""
    assert_text(err, 1100)  # with the name of the program before it
    assert r"a\x1b[2J\nfailed: forged" in err


@pytest.mark.parametrize("arguments", [
    ["ablation", "--rows", HOSTILE], ["ablation", "--jobs", HOSTILE], [HOSTILE],
])
def test_words_of_the_benchmarks(capsys, arguments):
    with pytest.raises(SystemExit) as left:
        run_program(lambda: benchmark(arguments))
    out, err = capsys.readouterr()
    assert left.value.code == 2 and out == ""
    assert_text(err, 1100)
    assert r"a\x1b[2J\nfailed: forged" in err
