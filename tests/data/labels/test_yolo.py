"""YOLO's text files, with the names of the classes in data.yaml."""

import pytest
import yaml

from tests.helpers.labels import dataset_of, labels_of, refusal, save_images

TEXTS = {"a": "1 .5 .5 .2 .2\n0 0.1 0.1 0.2 0.1 0.2 0.2\n1 0.5 0.5 0.1 0.1\n",
         "b.v2": "2 0 0 1 1\n", "c": ""}
EXPECTED = {"a": {"axe", "saw"}, "b.v2": {"peg"}, "c": set()}
NAMES = ["saw", "axe", "peg"]


def write(root, images="images/train", labels="labels/train", names=NAMES):
    save_images(root / images, "a.jpg", "b.v2.png", "c.jpg")
    (root / labels).mkdir(parents=True, exist_ok=True)
    for name, text in TEXTS.items():
        (root / labels / f"{name}.txt").write_text(text)
    (root / "data.yaml").write_text(yaml.safe_dump({"nc": len(names), "names": names,
                                                    "train": "../train/images"}))
    return root


@pytest.mark.parametrize("images, labels", [
    ("images/train", "labels/train"), ("train/images", "train/labels"), ("images", "labels"),
    ("images", "images"), ("photos", "labels"),
])
@pytest.mark.parametrize("named", ["data.yaml", "folder", "root"])
@pytest.mark.parametrize("names", [NAMES, dict(enumerate(NAMES))])
def test_labels(tmp_path, images, labels, named, names):
    write(tmp_path, images, labels, names)
    (tmp_path / "README.txt").write_text("An export.")
    path = {"data.yaml": "data.yaml", "folder": labels, "root": "."}[named]
    assert labels_of(tmp_path, images=images, labels=path) == EXPECTED
    assert dataset_of(tmp_path, images=images, labels=path).classes == tuple(NAMES)


def test_the_labels_of_other_parts_are_left_aside(tmp_path, capsys):
    write(tmp_path)
    (tmp_path / "labels/val").mkdir()
    (tmp_path / "labels/val/x.txt").write_text("0 .5 .5 .5 .5")
    assert labels_of(tmp_path, images="images/train", labels="labels") == EXPECTED
    assert capsys.readouterr().err == (
        f"note: {tmp_path}/labels/train: 3 images, 3 classes, YOLO\n")
    save_images(tmp_path / "images/val", "x.jpg")
    assert labels_of(tmp_path, "val", images="images/train", labels="data.yaml",
                     val_images="images/val", val_labels="data.yaml") == {"x": {"saw"}}
    assert labels_of(tmp_path, labels="data.yaml") == {
        f"train/{name}": labels for name, labels in EXPECTED.items()} | {"val/x": {"saw"}}


def test_numbers_with_gaps(tmp_path):
    write(tmp_path, names={1: "axe", 0: "saw", 2: "peg", 7: "nail"})
    data = {"images": "images/train", "labels": "labels/train"}
    assert dataset_of(tmp_path, **data).classes == ("saw", "axe", "peg", "nail")


def test_names_that_yaml_takes_for_other_things(tmp_path):
    write(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [no, 007, 2026-11-25]")
    data = {"images": "images/train", "labels": "labels/train"}
    assert dataset_of(tmp_path, **data).classes == ("no", "007", "2026-11-25")


def test_names_in_a_list_beside_the_labels(tmp_path):
    write(tmp_path)
    (tmp_path / "data.yaml").unlink()
    data = {"images": "images/train", "labels": "labels/train"}
    assert "the names of YOLO's classes are nowhere" in refusal(tmp_path, **data)
    (tmp_path / "labels/train/classes.txt").write_text("\n".join(NAMES))
    assert labels_of(tmp_path, **data) == EXPECTED


@pytest.mark.parametrize("text, message", [
    ("0 0.5 0.5\n", "a.txt, line 1: '0 0.5 0.5' is no object of YOLO"),
    ("\n0 a b c d\n", "a.txt, line 2: '0 a b c d' is no object of YOLO"),
    ("3 0 0 1 1\n", "a.txt, line 1: there is no class 3 in"),
    ("-1 0 0 1 1\n", "is no object of YOLO"),
    ("0.5 0 0 1 1\n", "is no object of YOLO"),
])
def test_lines_that_are_none(tmp_path, text, message):
    write(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(text)
    assert message in refusal(tmp_path, images="images/train", labels="data.yaml")


@pytest.mark.parametrize("text, message", [
    ("names: [axe, [saw]]", "names[1] must be of type str, not ['saw']"),
    ("names: {a: b}", "names.a must be of type int"),
    ("names: 3", "names is missing"), ("- 3", "names is missing"), ("names: [", "line 1"),
])
def test_data_yaml_that_is_none(tmp_path, text, message):
    write(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    assert message in refusal(tmp_path, images="images/train", labels="data.yaml")
