"""COCO's JSON with categories of one's own."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.helpers.labels import dataset_of, labels_of, refusal, save_images

NAMES = ("sub/a.jpg", "b.jpg", "c.jpg")


@pytest.fixture
def root(tmp_path):
    save_images(tmp_path / "images", *NAMES)
    return tmp_path


def content():
    """Ids with gaps; no area, width or segmentation."""
    return {
        "images": [{"id": 30, "file_name": "images/sub/a.jpg"}, {"id": 7, "file_name": "b.jpg"},
                   {"id": "x9", "file_name": "c.jpg"}],
        "categories": [{"id": 90, "name": "wood  peg"}, {"id": 3, "name": "axe"},
                       {"id": 17, "name": "saw"}],
        "annotations": [
            {"image_id": 30, "category_id": 90},
            {"image_id": 30, "category_id": 3, "bbox": [1, 2, 3, 4]},
            {"image_id": 30, "category_id": 3, "iscrowd": 1},
            {"image_id": 7, "category_id": 3},
        ],
    }


EXPECTED = {"sub/a": {"wood  peg", "axe"}, "b": {"axe"}, "c": set()}


def test_labels(root, capsys):
    (root / "x.json").write_text(json.dumps(content()))
    assert labels_of(root, labels="x.json") == EXPECTED
    assert capsys.readouterr().err == f"note: {root}/x.json: 3 images, 3 classes, COCO JSON\n"
    assert dataset_of(root, labels="x.json").classes == ("axe", "saw", "wood  peg")


def test_masks_follow_the_order_of_the_ids(root, capsys):
    (root / "x.json").write_text(json.dumps(content()))
    save_images(root / "val", "v.png")
    (root / "masks").mkdir()
    Image.fromarray(np.full((8, 12), 3, np.uint8)).save(root / "masks/v.png")
    assert labels_of(root, "val", labels="x.json", val_images="val", val_masks="masks") == {
        "v": {"wood  peg"}}
    assert f"k-th class name in the order of {root}/x.json" in capsys.readouterr().err


def test_a_file_beside_the_images(root):
    (root / "images/_annotations.coco.json").write_text(json.dumps(content()))
    assert labels_of(root) == EXPECTED


def test_an_implied_background_is_left_out_and_a_used_one_refused(root):
    tree = content()
    tree["categories"].append({"id": 0, "name": "background"})
    (root / "x.json").write_text(json.dumps(tree))
    assert dataset_of(root, labels="x.json").classes == ("axe", "saw", "wood  peg")
    tree["annotations"].append({"image_id": 7, "category_id": 0})
    (root / "x.json").write_text(json.dumps(tree))
    assert "remove 'background'" in refusal(root, labels="x.json")


@pytest.mark.parametrize("change, message", [
    (lambda c: c.pop("annotations"), "annotations is missing"),
    (lambda c: c["annotations"][0].pop("category_id"), "annotations[0].category_id is missing"),
    (lambda c: c["annotations"][1].update(image_id=[7]), "annotations[1].image_id must be"),
    (lambda c: c["annotations"][1].update(image_id=8), "annotations[1] has the image_id 8, which"),
    (lambda c: c["annotations"][1].update(category_id=8), "has the category_id 8, which the file"),
    (lambda c: c["images"].append(c["images"][0]), "two of the images have one id"),
    (lambda c: c["categories"].append(c["categories"][0]), "two of the categories have one id"),
    (lambda c: c["categories"][0].update(name="axe"), "the class 'axe' is listed twice"),
    (lambda c: c["images"][0].update(file_name="a/d.jpg"), "image 30: there is no image 'a/d.jpg'"),
    (lambda c: c["images"].clear(), "has the image_id 30"),
])
def test_mistakes(root, change, message):
    tree = content()
    change(tree)
    (root / "x.json").write_text(json.dumps(tree))
    assert message in refusal(root, labels="x.json")


def test_the_labels_are_those_of_pycocotools(root):
    coco = pytest.importorskip("pycocotools.coco")
    (root / "x.json").write_text(json.dumps(
        content() | {"annotations": [item | {"id": number} for number, item in
                                     enumerate(content()["annotations"])]}))
    theirs = coco.COCO(str(root / "x.json"))
    names = {item["id"]: item["name"] for item in theirs.loadCats(theirs.getCatIds())}
    found = {image["file_name"].removeprefix("images/").removesuffix(".jpg"):
             {names[item["category_id"]] for item in theirs.imgToAnns[identity]}
             for identity, image in theirs.imgs.items()}
    assert found == labels_of(root, labels="x.json")


def test_a_category_of_categories_is_no_class(root):
    """Roboflow lists the name of the project with the id 0."""
    tree = content()
    tree["categories"] = [{"id": 0, "name": "tools", "supercategory": "none"}, *(
        category | {"supercategory": "tools"} for category in tree["categories"])]
    (root / "x.json").write_text(json.dumps(tree))
    assert dataset_of(root, labels="x.json").classes == ("axe", "saw", "wood  peg")
    tree["annotations"][3]["category_id"] = 0
    (root / "x.json").write_text(json.dumps(tree))
    assert labels_of(root, labels="x.json")["b"] == {"tools"}, "it is annotated"
    tree = content()
    tree["categories"][2]["supercategory"] = "saw"  # COCO's person is a person
    (root / "x.json").write_text(json.dumps(tree))
    assert "saw" in dataset_of(root, labels="x.json").classes, "its own supercategory alone"


def test_ids_of_images_may_be_text_in_one_place(root):
    """VIA writes them so."""
    tree = content()
    for annotation in tree["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    (root / "x.json").write_text(json.dumps(tree))
    assert labels_of(root, labels="x.json") == EXPECTED
