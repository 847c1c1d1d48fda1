"""infer.py --review: all masks by their certainty, the least certain on a sheet."""

import csv
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

import infer
from cosa.inference import outputs
from cosa.inference import review as reviewing
from cosa.pictures.legend import BAR, GAP
from cosa.pictures.sheet import BOX
from tests.helpers.inference import files, refusal, save_smooth

NAMES = ["0.png", "a/1.png", "a/2.jpg", "a/3.png"]


def table(out):
    with open(out / "review.csv", newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["image", "certainty", "error"]
    return rows


def written(out):
    return {name: (out / name).read_bytes() for name in ("review.csv", "review.png")}


@pytest.mark.parametrize("options", [(), ("--mode", "slide", "--window", "16"), ("--crf",)])
def test_the_least_certain_come_first(tmp_path, photos, program, options):
    out = tmp_path / "out"
    code, text, err = program(photos, out, "--review", 2, "--json", tmp_path / "s.json", *options)
    assert (code, err) == (0, "")
    assert text.splitlines()[1] == "least certain first: review.csv, review.png"
    stems = [name.rpartition(".")[0] for name in NAMES]
    assert files(out) == sorted([
        *(stem + suffix for stem in stems for suffix in (".png", ".certainty.npz")),
        "classes.csv", "review.csv", "review.png",
    ])
    summary = json.loads((tmp_path / "s.json").read_text())["images"]
    expected = sorted((entry["certainty"], entry["path"]) for entry in summary)
    assert table(out) == [[name, f"{value:.6f}", ""] for value, name in expected]
    for stem, entry in zip(stems, summary, strict=True):
        saved = outputs.read_certainty(out / f"{stem}.certainty.npz")
        assert saved == pytest.approx(entry["certainty"], abs=1e-6)

    # The pair in the first place is that of the least certain image.
    with Image.open(out / "review.png") as picture, Image.open(photos / expected[0][1]) as image:
        assert picture.width > 4 * BOX[0] and picture.height < 3 * (BOX[1] + BAR)
        size = (BOX[0], round(image.height * BOX[0] / image.width))
        seen = picture.convert("RGB").crop((GAP, 0, GAP + BOX[0], picture.height))
        small = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
        found = np.asarray(seen)
        tops = range(found.shape[0] - size[1])
        assert any(np.array_equal(found[top : top + size[1]], small) for top in tops)


def test_a_finished_folder_keeps_its_certainty(tmp_path, photos, program):
    out = tmp_path / "out"
    # Masks alone do not tell: their images are computed again, once.
    assert program(photos, out)[0] == 0
    code, text, err = program(photos, out, "--review", 3)
    assert (code, err) == (0, "") and text.startswith("4 done")
    first = written(out)
    summary = tmp_path / "s.json"
    code, text, err = program(photos, out, "--review", 3, "--json", summary)
    assert (code, err) == (0, "") and "0 done" in text and "4 skipped" in text
    assert written(out) == first
    told = {entry["path"]: f"{entry['certainty']:.6f}"
            for entry in json.loads(summary.read_text())["images"]}
    assert told == {name: value for name, value, _ in table(out)}
    # Neither the sheet nor the table is taken for a result of other images.
    assert program(photos, out, "--review", 1, "--size", 16, "--overwrite")[0] == 0
    assert program(photos, out, "--size", 16)[0] == 0
    # More than there are, and in several threads.
    assert program(photos, out, "--review", 200, "--overwrite", "--workers", 3,
                   "--batch-size", 3)[0] == 0
    assert written(out)["review.csv"] == first["review.csv"]


def test_images_that_fail_are_told_in_the_table(tmp_path, photos, program):
    out = tmp_path / "out"
    (photos / "b.png").write_bytes(b"no image")
    assert program(photos, out, "--review", 1)[0] == 1
    *good, (name, value, error) = table(out)
    assert len(good) == 4 and (name, value) == ("b.png", "") and str(photos / "b.png") in error

    # A certainty and a mask that are damaged, and an image that is gone when it is to be shown.
    (out / "0.certainty.npz").write_bytes((out / "0.png").read_bytes())
    (photos / "b.png").unlink()
    code, text, err = program(photos, out, "--review", 4)
    assert code == 1 and "1 failed" in text and "delete it, or use --overwrite" in err
    assert [row[:2] for row in table(out)][-1] == ["0.png", ""]
    assert [row[0] for row in table(out)[:3]] == [row[0] for row in good if row[0] != "0.png"]

    for path in photos.rglob("*.*"):
        path.write_bytes(b"")
    code, _, err = program(photos, out, "--review", 4)
    assert code == 1 and err.count("failed: ") == 4
    assert not (out / "review.png").exists()
    assert [row[1] != "" for row in table(out)] == [True] * 3 + [False]
    assert all(row[2] for row in table(out))


def test_stopped_it_leaves_what_was_there(tmp_path, photos, program, monkeypatch):
    out = tmp_path / "out"
    assert program(photos, out, "--review", 2)[0] == 0
    before = written(out)
    real = reviewing.read_image

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reviewing, "read_image", interrupted)
        code, _, err = program(photos, out, "--review", 3)
    assert code == 130 and "the same command goes on where it left off" in err
    assert written(out) == before and not [*out.rglob("*.tmp")]
    assert program(photos, out, "--review", 3)[0] == 0
    assert written(out) != before


def test_what_would_be_lost_is_refused(tmp_path, photos, weights, program):
    out = tmp_path / "out"
    assert program(photos, out, "--review", 1)[0] == 0
    for option in ("--labels", "--evaluate"):
        told = refusal(weights, photos, out, "--review", 1, option, out / "review.csv")
        assert option in told
    for name in ("review.csv", "review.png"):
        told = refusal(weights, photos, out, "--review", 1, "--json", out / name)
        assert "--json" in told and "choose another" in told
    (out / "review.csv").write_text('"image","certainty","error"\n')  # as a spreadsheet saves it
    assert program(photos, out, "--review", 1)[0] == 0
    (out / "review.csv").write_text("image,opinion\n")
    assert "was not written by --review" in refusal(weights, photos, out, "--review", 1)
    (out / "review.csv").unlink()
    assert "review.png is there" in refusal(weights, photos, out, "--review", 1)
    save_smooth(photos / "review.jpg")
    told = refusal(weights, photos, tmp_path / "new", "--review", 1)
    assert "rename the image" in told and not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", ["0", "201", "x"])
def test_options(capfd, number):
    with pytest.raises(SystemExit) as left:
        infer.parse(["in", "--weights", "w", "--output", "o", "--review", number])
    assert left.value.code == 2 and "--review" in capfd.readouterr().err
