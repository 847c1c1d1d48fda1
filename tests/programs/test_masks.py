"""The programs score the same whatever form the true masks have."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cosa.data.__main__ import main as look
from cosa.data.check import statistics
from tests.helpers.inference import CLASSES, save_smooth
from tests.helpers.training import configure

COLORS = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)], np.uint8)
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\n" + "".join(
    f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in zip(CLASSES[::-1], COLORS[:0:-1], strict=True))


def lengths(inside):
    """Run lengths of (H, W) bool, column by column."""
    flat = np.concatenate([[False], inside.T.ravel(), [False]])
    ends = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], ends, [inside.size]])).tolist()


@pytest.fixture
def forms(tmp_path):
    """Images with labels.csv, and their masks as indices, as colours, and as a JSON file."""
    images, items, rows = [], [], ["image,labels"]
    for number, name in enumerate("abcdef"):
        save_smooth(tmp_path / f"in/{name}.png", (40, 30), seed=number)
        mask = np.zeros((30, 40), np.uint8)
        values = 1 + number % 3, 1 + (number + number // 3) % 3
        mask[3:20, 4:30], mask[10:28, 20 + number : 38] = values
        mask[:2] = 255 * (number % 2)
        for folder, picture in (("index", mask), ("colors/masks", COLORS[np.minimum(mask, 3)])):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            if folder != "index":
                picture[mask == 255] = (224, 224, 192)
            Image.fromarray(picture).save(tmp_path / folder / f"{name}.png")
        images.append({"id": 3 * number, "file_name": f"photos/{name}.png", "width": 40,
                       "height": 30})
        for value in {*np.unique(mask)} - {0}:
            items.append({"image_id": 3 * number, "category_id": 10 * int(min(value, 3)),
                          "iscrowd": int(value == 255),
                          "segmentation": {"counts": lengths(mask == value)}})
        rows.append(f'{name},"{";".join(CLASSES[value - 1] for value in sorted({*values}))}"')
    categories = [{"id": 10 * k, "name": name} for k, name in enumerate(CLASSES, 1)]
    (tmp_path / "masks.json").write_text(json.dumps(
        {"images": images, "annotations": items, "categories": categories[::-1]}))
    (tmp_path / "colors/labelmap.txt").write_text(LABELMAP)
    shutil.copy(tmp_path / "colors/labelmap.txt", tmp_path / "map.txt")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return tmp_path


def test_the_forms_are_evaluated_alike(forms, program):
    scores = []
    for masks, told in (("index", ""), ("colors/masks", "labelmap.txt"), ("masks.json", "")):
        code, out, err = program(forms / "in", forms / "out", "--evaluate", forms / masks,
                                 "--json", forms / "s.json")
        assert code == 0 and "6 images scored" in out and told in err
        assert err.count("\n") == bool(told)
        scores.append(json.loads((forms / "s.json").read_text())["run"]["scores"])
    assert scores[0] == scores[1] == scores[2] and 0 < scores[0]["miou"] < 1


def test_a_map_is_given_where_none_is_found(forms, program, weights, command_line):
    (forms / "colors/labelmap.txt").unlink()
    given = (forms / "in", forms / "out", "--evaluate", forms / "colors/masks")
    code, _, err = program(*given, "--colors", forms / "map.txt")
    assert (code, err) == (0, "")
    code, _, err = command_line("infer.py", given[0], "--output", *given[1:], "--weights", weights,
                                "--device", "cpu")
    assert code == 2 and err.startswith("error: none of 6 true masks can be scored")
    assert "a.png" in err and "--colors" in err and err.count("\n") == 1
    code, _, err = command_line("infer.py", given[0], "--output", given[1], "--weights", weights,
                                "--colors", "map.txt")
    assert code == 2 and "--colors is of use with --evaluate only" in err
    code, _, err = command_line("infer.py", given[0], "--output", *given[1:], "--weights", weights,
                                "--colors", forms / "map.txt", "--json", forms / "map.txt")
    assert code == 2 and "is the name of another file" in err
    assert (forms / "map.txt").read_text() == LABELMAP


def test_masks_of_nearly_the_size_are_scored(forms, program):
    for name in "abcdef":
        with Image.open(forms / f"in/{name}.png") as image:
            image.resize((400, 300)).save(forms / f"in/{name}.png")
        with Image.open(forms / f"index/{name}.png") as mask:
            mask.resize((402, 297), Image.Resampling.NEAREST).save(forms / f"index/{name}.png")
    code, out, err = program(forms / "in", forms / "out", "--evaluate", forms / "index")
    assert code == 0 and "6 images scored" in out
    assert err.count("\n") == 1 and "402x297 pixels but" in err and "are resized" in err


def test_the_forms_are_looked_at_alike(forms, capsys):
    tables = []
    for more in (["data.masks=index"], ["data.masks=colors/masks"], ["data.masks=masks.json"],
                 ["data.masks=colors/masks", "data.colors=map.txt"]):
        assert look(["data.name=folder", f"data.root={forms}", "data.images=in",
                     "data.labels=labels.csv", "data.classes=classes.txt", *more]) == 0
        tables.append(capsys.readouterr().out)
    assert len({*tables}) == 1 and "validation masks" in tables[0]


def test_a_training_is_scored_by_annotations_and_named_as_typed(forms, train_program, monkeypatch):
    reads = []
    original = statistics.count_masks
    monkeypatch.setattr("cosa.data.check.report.count_masks",
                        lambda *given: reads.append(given) or original(*given))
    config = configure(forms / "runs_of", train={"iterations": 1}, data={
        "name": "folder", "root": str(forms), "images": "in", "labels": "labels.csv",
        "masks": "masks.json", "classes": "classes.txt"})
    code, out, err = train_program(config, "name=007", f"output={forms}/2026-11-25")
    assert code == 0, err
    run = forms / "2026-11-25/007"
    assert "name: '007'" in (run / "config.yaml").read_text()
    assert json.loads((run / "summary.json").read_text())["miou"] is not None and len(reads) == 1
    code, _, err = train_program("--resume", run, "train.iterations=two")
    assert code == 2 and "'train.iterations' on the command line must be of type int" in err
    assert "config.yaml" not in err
