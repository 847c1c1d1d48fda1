"""LabelMe's JSON: labels of shapes, and flags."""

import json

import pytest

from tests.helpers.labels import dataset_of, labels_of, refusal, save_images


def file(image, *labels, **flags):
    shapes = [{"label": label, "points": [[1, 1], [4, 1], [4, 5]], "shape_type": "polygon",
               "flags": {"occluded": True}} for label in labels]
    return {"version": "5.4.1", "flags": flags, "shapes": shapes, "imagePath": image,
            "imageData": None, "imageHeight": 8, "imageWidth": 12}


FILES = {
    "cats/a": file("a.jpg", "cat", "cat", "dog"),
    "dogs/a": file("..\\dogs\\a.jpg", "dog"),
    "b.v2": file("renamed.jpg", "__ignore__", wet=True, dark=False),
    "c": file("../elsewhere/c.png") | {"flags": None},
}
EXPECTED = {"cats/a": {"cat", "dog"}, "dogs/a": {"dog"}, "b.v2": {"wet"}, "c": set()}


@pytest.fixture
def root(tmp_path):
    save_images(tmp_path / "images", "cats/a.jpg", "dogs/a.jpg", "b.v2.jpg", "c.png")
    return tmp_path


def write(folder, files=FILES):
    for name, content in files.items():
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def test_labels(root, capsys):
    write(root / "json")
    assert labels_of(root, labels="json") == EXPECTED
    assert "json: 4 images, 4 classes, LabelMe JSON\n" in capsys.readouterr().err
    assert dataset_of(root, labels="json").classes == ("cat", "dark", "dog", "wet")


def test_files_beside_the_images(root):
    write(root / "images")
    assert labels_of(root) == EXPECTED


@pytest.mark.parametrize("change, message", [
    ({"shapes": 3}, "c.json: shapes must be a list"),
    ({"shapes": [{"label": None}]}, "c.json: shapes[0].label must be of type str"),
    ({"flags": {"wet": 1}}, "c.json: flags.wet must be"),
    ({"imagePath": ["c.jpg"]}, "c.json: imagePath must be"),
])
def test_mistakes(root, change, message):
    write(root / "json", FILES | {"c": FILES["c"] | change})
    assert message in refusal(root, labels="json")


def test_two_formats_in_one_folder_are_asked_for(root):
    write(root / "json")
    (root / "json/c.xml").write_text("<annotation/>")
    assert "more than one format, LabelMe JSON and VOC XML" in refusal(root, labels="json")
