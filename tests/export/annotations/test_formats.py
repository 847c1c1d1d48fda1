"""The formats of annotation tools: read by this program's own readers and held against theirs."""

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cosa.core.errors import UserError
from cosa.core.files import TEMPORARY
from cosa.data.labels import ImageIndex, match_rows, read_labels
from cosa.data.masks import open_masks
from cosa.data.masks.outlines import fill_polygon
from cosa.export.annotations import FORMATS, Picture, Target, find_regions
from tests.helpers.hostile import CLASS

CLASSES = ("katze – 猫 😀", CLASS, "no", "1", '"a": <b> & \'c\', {d}', "nowhere")
PALETTE = [(k, 2 * k, 3 * k) for k in range(len(CLASSES) + 1)]
SIZE = (23, 17)
NAMES = ["0.png", "a/1 ü&#%.jpg", "a/b/2.png", "empty.png"]


def masks():
    """By name, with holes, parts at the borders and one without anything."""
    rng = np.random.default_rng(0)
    found = {name: np.kron(rng.integers(0, 6, (6, 8)), np.ones((3, 3)))[:17, :23].astype(np.uint8)
             for name in NAMES}
    found[NAMES[1]][4:13, 5:14] = 2
    found[NAMES[1]][6:9, 7:9] = found[NAMES[1]][10:12, 7:12] = 0
    found["empty.png"][:] = 0
    return found


def probability(mask):
    return (np.arange(mask.size).reshape(mask.shape) % 10 / 10).astype(np.float16)


def write(root, *formats, masks=None, **rest):
    """Write masks as pictures below root/in and root/out; the writers, and what was written."""
    target = Target(root / "out", CLASSES, PALETTE, model="CoSA 1234", **rest)
    writers = [FORMATS[name](target) for name in formats]
    pictures = []
    for name, mask in (masks or globals()["masks"]()).items():
        path = root / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(path, format="PNG")
        regions = find_regions(mask, probability(mask))
        pictures.append(Picture(name, path, mask.shape[::-1], regions))
    for writer in writers:
        writer.check()
        with writer:
            for picture in pictures:
                writer.add(picture)
            writer.finish()
    return writers, pictures


def labels_of(path, root, **rest):
    """Image name -> classes, as labels are read for a training."""
    table = read_labels(path, images=root / "in", **rest)
    index = ImageIndex({name: (name, root / "in" / name) for name in NAMES})
    return {name: set(row.labels) for name, row in match_rows(table, index).items()}, table


def expected_labels():
    return {name: {CLASSES[k - 1].strip() for k in np.unique(mask) if k}
            for name, mask in masks().items()}


def drawn(size, polygons):
    """The mask of (label, corners in pixels)."""
    mask = np.zeros(size[::-1], np.uint8)
    for label, corners in polygons:
        mask[fill_polygon(np.array(corners), size)] = label
    return mask


def test_coco(tmp_path):
    _, pictures = write(tmp_path, "coco")
    path = tmp_path / "out/coco.json"
    content = json.loads(path.read_text("ascii"))
    assert [c["id"] for c in content["categories"]] == [*range(1, 7)]
    assert [c["name"] for c in content["categories"]] == list(CLASSES)
    assert [image["file_name"] for image in content["images"]] == NAMES
    assert [a["id"] for a in content["annotations"]] == [*range(1, 1 + len(content["annotations"]))]
    assert {type(a["segmentation"]) for a in content["annotations"]} == {list, dict}
    regions = [region for picture in pictures for region in picture.regions]
    for item, region in zip(content["annotations"], regions, strict=True):
        assert item["iscrowd"] == 0 and item["area"] == region.area
        assert item["score"] == pytest.approx(region.score, abs=1e-4)
        assert tuple(item["bbox"]) == region.box
    found, table = labels_of(path, tmp_path)
    assert found == expected_labels() and table.names == tuple(n.strip() for n in CLASSES)
    reader = open_masks(path, {name: name for name in NAMES}, CLASSES)
    for name, mask in masks().items():
        np.testing.assert_array_equal(reader.read(name, SIZE), mask)


def test_coco_by_its_own_package(tmp_path):
    tools = pytest.importorskip("pycocotools.coco")
    write(tmp_path, "coco")
    coco = tools.COCO(str(tmp_path / "out/coco.json"))
    for number, mask in zip(coco.getImgIds(), masks().values(), strict=True):
        again = np.zeros_like(mask)
        for item in coco.loadAnns(coco.getAnnIds(imgIds=number)):
            again[coco.annToMask(item) == 1] = item["category_id"]
        np.testing.assert_array_equal(again, mask)
    assert coco.getCatIds(catNms=[CLASSES[0]]) == [1]
    # Results of a detector are run lengths for it, not polygons.
    results = [{key: item[key] for key in ("image_id", "category_id", "score")}
               | {"segmentation": coco.annToRLE(item)} for item in coco.anns.values()]
    areas = [item["area"] for item in coco.loadRes(results).anns.values()]
    assert areas == [item["area"] for item in coco.anns.values()]


def test_yolo(tmp_path):
    _, pictures = write(tmp_path, "yolo")
    folder = tmp_path / "out/yolo"
    found, table = labels_of(folder, tmp_path)
    assert found == expected_labels() and table.names == tuple(n.strip() for n in CLASSES)
    assert (folder / "labels/empty.txt").read_bytes() == b""
    for picture in pictures:
        stem = picture.name.rpartition(".")[0]
        lines = (folder / f"labels/{stem}.txt").read_text().splitlines()
        polygons = []
        for line in lines:
            label, *numbers = line.split()
            corners = np.array(numbers, float).reshape(-1, 2)
            assert len(corners) >= 4 and 0 <= corners.min() and corners.max() <= 1
            polygons.append((int(label) + 1, corners * SIZE))
        np.testing.assert_array_equal(drawn(SIZE, polygons), masks()[picture.name])
        scores = (folder / f"scores/{stem}.txt").read_text().split()
        assert [float(score) for score in scores] == pytest.approx(
            [region.score for region in picture.regions], abs=1e-4)


SHAPE = {"label": str, "points": list, "group_id": type(None), "description": str,
         "shape_type": str, "flags": dict, "mask": type(None)}
FILE = {"version": str, "flags": dict, "shapes": list, "imagePath": str, "imageData": type(None),
        "imageHeight": int, "imageWidth": int}
"""What LabelMe 5 writes itself, by its label_file.py."""


def test_labelme(tmp_path):
    _, pictures = write(tmp_path, "labelme")
    found, _ = labels_of(tmp_path / "out/labelme", tmp_path)
    assert {name: {label.strip() for label in labels} for name, labels in found.items()} == (
        expected_labels())
    for picture in pictures:
        path = tmp_path / "out/labelme" / (picture.name.rpartition(".")[0] + ".json")
        content = json.loads(path.read_text("ascii"))
        assert {key: type(value) for key, value in content.items()} == FILE
        assert (content["imageWidth"], content["imageHeight"]) == SIZE
        # LabelMe joins the two.
        assert (path.parent / content["imagePath"]).samefile(picture.source)
        polygons = []
        for shape, region in zip(content["shapes"], picture.regions, strict=True):
            assert {key: type(value) for key, value in shape.items()} == SHAPE
            assert shape["shape_type"] == "polygon" and len(shape["points"]) >= 4
            assert shape["description"] == f"score {region.score:.4f}"
            polygons.append((CLASSES.index(shape["label"]) + 1, shape["points"]))
        np.testing.assert_array_equal(drawn(SIZE, polygons), masks()[picture.name])


RESULT = {"id": str, "type": str, "from_name": str, "to_name": str, "original_width": int,
          "original_height": int, "image_rotation": int, "score": float, "value": dict}
"""Of a region in Label Studio, by its documentation of pre-annotations."""


def test_label_studio(tmp_path):
    _, pictures = write(tmp_path, "labelstudio", prefix="/data/local-files/?d=pets/")
    path = tmp_path / "out/labelstudio.json"
    tasks = json.loads(path.read_text("ascii"))
    interface = ElementTree.parse(tmp_path / "out/labelstudio.xml").getroot()
    image, labels = interface.find("Image").attrib, interface.find("PolygonLabels").attrib
    offered = [label.get("value") for label in interface.iter("Label")]
    assert offered[0] == CLASSES[0] and offered[4] == CLASSES[4] and len(offered) == len(CLASSES)
    assert [*interface.iter("Label")][1].get("background") == "#020406"
    for task, picture in zip(tasks, pictures, strict=True):
        assert set(task) == {"data", "predictions"} and len(task["predictions"]) == 1
        assert image["value"] == "$image" and [*task["data"]] == ["image"]
        (prediction,) = task["predictions"]
        assert prediction["model_version"] == "CoSA 1234"
        polygons = []
        for result, region in zip(prediction["result"], picture.regions, strict=True):
            assert {key: type(value) for key, value in result.items()} == RESULT
            assert (result["from_name"], result["to_name"]) == (labels["name"], labels["toName"])
            assert result["to_name"] == image["name"] and result["type"] == "polygonlabels"
            assert (result["original_width"], result["original_height"]) == SIZE
            assert result["score"] == pytest.approx(region.score, abs=1e-4)
            (label,) = result["value"]["polygonlabels"]
            corners = np.array(result["value"]["points"])
            assert 0 <= corners.min() and corners.max() <= 100
            polygons.append((CLASSES.index(label) + 1, corners * SIZE / 100))
        mask = masks()[picture.name]
        np.testing.assert_array_equal(drawn(SIZE, polygons), mask)
        if mask.any():
            mean = probability(mask)[mask > 0].astype(float).mean()
            assert prediction["score"] == pytest.approx(mean, abs=1e-3)
        else:
            assert "score" not in prediction
        # Who submits a prediction makes an annotation of it.
        task["annotations"] = [{"result": prediction["result"]}]
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=pets/a/1%20%C3%BC%26%23%25.jpg"
    with pytest.raises(UserError, match="names no image"):
        read_labels(path)  # nobody has annotated anything yet
    (tmp_path / "submitted.json").write_text(json.dumps(tasks))
    found, _ = labels_of(tmp_path / "submitted.json", tmp_path)
    assert {name: {label.strip() for label in labels} for name, labels in found.items()} == (
        expected_labels())


def test_simplified_polygons_have_fewer_corners(tmp_path):
    rows, columns = np.mgrid[:17, :23]
    disk = (np.hypot(rows - 8, columns - 11) < 8).astype(np.uint8)
    corners = []
    for tolerance in (0.0, 1.0):
        root = tmp_path / str(tolerance)
        write(root, *FORMATS, masks={"0.png": disk}, tolerance=tolerance)
        (item,) = json.loads((root / "out/coco.json").read_text())["annotations"]
        (task,) = json.loads((root / "out/labelstudio.json").read_text())
        counts = {
            len(item["segmentation"][0]) // 2,
            len((root / "out/yolo/labels/0.txt").read_text().split()) // 2,
            len(json.loads((root / "out/labelme/0.json").read_text())["shapes"][0]["points"]),
            len(task["predictions"][0]["result"][0]["value"]["points"]),
        }
        assert len(counts) == 1
        corners += counts
    assert corners[1] < corners[0] / 2


def test_files_that_somebody_may_have_corrected_stay(tmp_path):
    write(tmp_path, *FORMATS)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    left = tmp_path / "out/labelme/a" / TEMPORARY.format("0")
    left.write_text("of a killed program")
    os.utime(left, (0, 0))
    writers, _ = write(tmp_path, *FORMATS)
    assert [writer.kept for writer in writers] == [0, 0, 0, 0]
    assert not left.exists()
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    own = [tmp_path / "out/labelme/0.json", tmp_path / "out/yolo/labels/0.txt",
           tmp_path / "out/yolo/scores/0.txt", tmp_path / "out/labelstudio.xml"]
    for path in own:
        path.write_text("mine")
    writers, _ = write(tmp_path, *FORMATS)
    assert [writer.kept for writer in writers] == [0, 2, 1, 1]
    assert all(path.read_text() == "mine" for path in own)
    write(tmp_path, *FORMATS, overwrite=True)
    assert before == {p: p.read_bytes() for p in before}


@pytest.mark.parametrize("name", ["coco", "labelstudio"])
def test_a_file_of_another_program_is_not_replaced(tmp_path, name):
    path = tmp_path / f"out/{name}.json"
    path.parent.mkdir()
    path.write_text("[]")
    with pytest.raises(UserError, match="not written by this program: move it away"):
        write(tmp_path, name)
    assert path.read_text() == "[]"


def test_what_is_not_finished_leaves_nothing(tmp_path):
    target = Target(tmp_path / "out", CLASSES, PALETTE)
    mask = masks()[NAMES[0]]
    regions = find_regions(mask, probability(mask))
    for name in ("coco", "labelstudio"):
        with pytest.raises(KeyboardInterrupt), FORMATS[name](target) as writer:
            writer.add(Picture("0.png", Path("0.png"), SIZE, regions))
            raise KeyboardInterrupt
    assert not [*(tmp_path / "out").iterdir()]
