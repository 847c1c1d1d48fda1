import csv
import json
import os
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cosa.core.errors import UserError
from cosa.data import base as datasets
from cosa.data import build_dataset
from cosa.data.coco import CLASSES as COCO
from cosa.data.labels import Names
from cosa.data.masks import read_mask
from cosa.data.masks.outlines import fill_polygon, region
from cosa.data.voc import CLASSES as VOC

KEYS = (
    "root train_split val_split images labels label_separator masks colors classes val_images "
    "val_labels val_masks value_range"
)
EMPTY = dict.fromkeys(KEYS.split(), "") | {"hold_out": False, "bands": ()}


def build(split="train", **data):
    return build_dataset(SimpleNamespace(**{**EMPTY, **data}), split)


def save_image(path, size=(12, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path, **options)


def save_mask(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(path)


def mask_of(*values, size=(12, 8)):
    """A mask whose first pixels hold ``values``, the others 0."""
    mask = np.zeros(size[0] * size[1], dtype=np.uint8)
    mask[: len(values)] = values
    return mask.reshape(size[1], size[0])


def present(dataset):
    return {
        name: {dataset.classes[i] for i in np.flatnonzero(row)}
        for name, row in zip(dataset.names, dataset.labels, strict=True)
    }


def fails(message, action):
    with pytest.raises(UserError) as raised:
        action()
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_unknown_data_set_names_the_nearest():
    fails("did you mean 'folder'?", lambda: build(name="foldr"))
    with pytest.raises(ValueError, match="split"):
        build("tset", name="voc")


# PASCAL VOC


def voc_xml(*names):
    parts = "<part><name>head</name></part>"
    objects = "".join(
        f"<object><name>{name}</name><difficult>1</difficult>{parts}</object>" for name in names
    )
    return f"<annotation>{objects}</annotation>"


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    content = {"a_1": ["dog", "person", "dog"], "a_2": ["cat"], "a_3": [], "v_1": ["tvmonitor"]}
    for name, objects in content.items():
        save_image(root / "JPEGImages" / f"{name}.jpg")
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(voc_xml(*objects))
        save_mask(root / "SegmentationClassAug" / f"{name}.png", mask_of(1, 255))
    save_mask(root / "SegmentationClass" / "v_1.png", mask_of(20, 0, 255))
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a_1\n")
    (lists / "val.txt").write_text("v_1\n\n")
    return root


def test_voc_training_set_is_the_augmented_masks_without_val(voc):
    for root in (voc, voc.parent, voc.parent.parent):
        dataset = build(name="voc", root=str(root))
        dataset.check()
        expected = {"a_1": {"dog", "person"}, "a_2": {"cat"}, "a_3": set()}
        assert present(dataset) == expected
    assert dataset.classes == VOC and len(VOC) == 20 and len(dataset.palette) == 21
    assert VOC[0] == "aeroplane" and VOC[14] == "person" and VOC[19] == "tvmonitor"
    assert dataset.image(0).size == (12, 8) and dataset.image(0).mode == "RGB"
    assert dataset.labels.dtype == np.uint8 and dataset.labels.shape == (3, 20)


def test_voc_without_masks_says_that_there_is_no_score(voc, capsys):
    (voc / "SegmentationClass").rename(voc / "elsewhere")
    assert not build("val", name="voc", root=str(voc)).has_masks
    assert "there is no mIoU" in capsys.readouterr().err
    build(name="voc", root=str(voc))
    assert capsys.readouterr().err == ""


def test_paths_may_start_at_home(voc, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(voc.parent.parent))
    assert len(build(name="voc", root="~/VOCdevkit")) == 3
    assert len(build(name="folder", root="~", images="images", labels="labels.csv")) == 3
    assert len(build(name="folder", images="~/images", labels="~/labels.csv")) == 3


@pytest.mark.parametrize("split", ["val", "test"])
def test_voc_validation_set(voc, split):
    dataset = build(split, name="voc", root=str(voc))
    dataset.check()
    assert dataset.has_masks and present(dataset) == {"v_1": {"tvmonitor"}}
    assert dataset.mask(0).dtype == np.uint8
    np.testing.assert_array_equal(dataset.mask(0), mask_of(20, 0, 255))


def test_voc_without_augmented_masks_says_so(voc, capsys):
    (voc / "SegmentationClassAug").rename(voc / "elsewhere")
    assert build(name="voc", root=str(voc)).names == ["a_1"]
    assert "train.txt" in capsys.readouterr().err


def test_voc_training_images_may_lack_masks_and_validation_images_may_not(voc):
    (voc / "SegmentationClassAug" / "a_2.png").unlink()
    (voc / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("a_1\na_2\n")
    training = build(name="voc", root=str(voc))
    training.check()
    assert [training.has_mask(index) for index in range(2)] == [True, False]
    assert training.mask(1) is None and training.has_masks
    scored = build("val", name="voc", root=str(voc), val_split="train_aug")
    assert scored.has_mask(1)
    fails("a_1.png", scored.check)


def test_voc_lists_override_and_drop_validation_images(voc):
    lists = voc / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text("/JPEGImages/a_2.jpg /SegmentationClassAug/a_2.png\nv_1\n")
    assert build(name="voc", root=str(voc)).names == ["a_2"]
    assert build(name="voc", root=str(voc), train_split="train").names == ["a_1"]
    assert build("val", name="voc", root=str(voc), val_split="train").names == ["a_1"]


def add_to_voc(voc, name, objects, suffix=".jpg"):
    save_image(voc / "JPEGImages" / f"{name}{suffix}", format="PNG" if suffix == ".png" else "JPEG")
    (voc / "Annotations" / f"{name}.xml").write_text(voc_xml(*objects))


def test_voc_names_may_hold_dots_and_blanks(voc):
    """The suffix of a name is that of an image, and nothing else; blanks separate paths alone."""
    content = {"IMG": ["cat"], "IMG.2024": ["dog"], "my photo": ["cow"], "my photo 0": ["sheep"],
               "my photo 1": ["horse"], "a b.c": ["bus"]}
    for name, objects in content.items():
        add_to_voc(voc, name, objects)
    lists = voc / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text(
        "IMG.2024\nmy photo 0\nmy photo 1\nmy photo\nJPEGImages/IMG.jpg\n"
        "/JPEGImages/a b.c.jpg /SegmentationClassAug/a b.c.png\n")
    dataset = build(name="voc", root=str(voc), train_split="train")
    dataset.check()
    assert present(dataset) == {name: set(objects) for name, objects in content.items()}
    assert dataset.image_paths[0].name == "IMG.2024.jpg"
    (lists / "train.txt").write_text("a_1  1\na_2 -1\n")  # as the lists of VOC's classes
    assert build(name="voc", root=str(voc), train_split="train").names == ["a_1", "a_2"]
    (lists / "train.txt").write_text("a_1 2\n")
    fails("a_1 2.xml", lambda: build(name="voc", root=str(voc), train_split="train"))


def test_voc_images_may_have_any_suffix(voc):
    for name, suffix in {"x": ".png", "y": ".JPG", "z.v2": ".jpeg"}.items():
        add_to_voc(voc, name, ["cat"], suffix)
    lists = voc / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("x\ny.JPG\nz.v2\na_1\n")
    dataset = build(name="voc", root=str(voc), train_split="train")
    dataset.check()
    assert [path.name for path in dataset.image_paths] == ["x.png", "y.JPG", "z.v2.jpeg", "a_1.jpg"]
    save_image(voc / "JPEGImages/x.jpg")
    fails("x.jpg and x.png are two images of one name",
          lambda: build(name="voc", root=str(voc), train_split="train"))


def test_voc_annotations_declare_no_entities(voc):
    laughs = "".join(f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' for k in range(1, 30))
    (voc / "Annotations/a_1.xml").write_text(
        f'<!DOCTYPE a [<!ENTITY l0 "ha">{laughs}]><annotation>&l29;</annotation>')
    fails("a_1.xml: the annotation cannot be read (it declares a document type",
          lambda: build(name="voc", root=str(voc)))


def test_voc_classes_of_ones_own_are_for_folders(voc):
    (voc / "Annotations/a_1.xml").write_text(voc_xml("zebrafish"))
    fails("'zebrafish' is no class of VOC; for classes of your own set data.name=folder",
          lambda: build(name="voc", root=str(voc)))
    (voc / "Annotations/v_1.xml").unlink()
    dataset = build(name="folder", root=str(voc), images="JPEGImages", labels="Annotations")
    assert present(dataset) == {"a_1": {"zebrafish"}, "a_2": {"cat"}, "a_3": set()}


def test_voc_mistakes_name_file_and_remedy(voc):
    def make(split="train", **data):
        return build(split, name="voc", root=str(voc), **data).check()

    fails("data.root is empty", lambda: build(name="voc"))
    fails("data.root", lambda: build(name="voc", root=str(voc / "nowhere")))
    fails("JPEGImages", lambda: build(name="voc", root=str(voc / "Annotations")))
    fails("did you mean 'train'?", lambda: make(train_split="trian"))
    (voc / "Annotations" / "a_1.xml").write_text(voc_xml("persn"))
    fails("a_1.xml: 'persn' is no class of VOC; did you mean 'person'?", make)
    for encoding in ("martian", "utf-32"):
        text = f'<?xml version="1.0" encoding="{encoding}"?>{voc_xml("dog")}'
        (voc / "Annotations" / "a_1.xml").write_text(text)
        fails("a_1.xml: the annotation cannot be read", make)
    (voc / "Annotations" / "a_1.xml").write_text("<annotation>")
    fails("a_1.xml: the annotation cannot be read", make)
    (voc / "Annotations" / "a_1.xml").unlink()
    fails("a_1.xml", make)
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\xffv_1\n")
    fails("val.txt, line 1: the list is not in UTF-8", lambda: make("val"))
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("v_1\nv_1\n")
    fails("v_1 is listed twice", lambda: make("val"))


# MS COCO


def coco_json(path):
    """Two images of 12x8: a dog under a cat and a crowd of persons; nothing."""
    small, large = [2, 2, 4, 2, 4, 4, 2, 4], [2, 2, 8, 2, 8, 8, 2, 8]
    crowd = {"counts": [0, 24, 72], "size": [8, 12]}
    annotations = [
        dict(category_id=17, area=4, iscrowd=0, segmentation=[small]),
        dict(category_id=18, area=36, iscrowd=0, segmentation=[large]),
        dict(category_id=1, area=99, iscrowd=1, segmentation=crowd),
    ]
    annotations = [dict(item, id=i, image_id=7) for i, item in enumerate(annotations)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({
        "images": [
            dict(id=7, file_name="COCO_val2014_000000000007.jpg", width=12, height=8),
            dict(id=9, file_name="COCO_val2014_000000000009.jpg", width=12, height=8),
        ],
        "categories": [dict(id=1, name="person"), dict(id=17, name="cat"), dict(id=18, name="dog")],
        "annotations": annotations,
    }))  # fmt: skip


@pytest.fixture
def coco(tmp_path):
    for part in ("train2014", "val2014"):
        for number in (7, 9):
            save_image(tmp_path / part / f"COCO_{part}_{number:012d}.jpg")
    coco_json(tmp_path / "annotations" / "instances_val2014.json")
    save_mask(
        tmp_path / "SegmentationClass" / "train2014" / "000000000007.png", mask_of(1, 80, 255)
    )
    save_mask(tmp_path / "SegmentationClass" / "train2014" / "000000000009.png", mask_of(255))
    return tmp_path


def test_coco_classes_are_contiguous():
    assert len(COCO) == len(set(COCO)) == 80
    assert (COCO[0], COCO[15], COCO[16], COCO[79]) == ("person", "cat", "dog", "toothbrush")


def test_coco_labels_and_masks_from_json(coco):
    dataset = build("val", name="coco", root=str(coco))
    dataset.check()
    seven, nine = (f"COCO_val2014_{number:012d}" for number in (7, 9))
    assert present(dataset) == {seven: {"person", "cat", "dog"}, nine: set()}
    expected = np.zeros((8, 12), dtype=np.uint8)
    expected[:, :3] = 255  # the crowd: 24 pixels, column by column
    expected[2:8, 2:8] = 17  # the dog, on the crowd
    expected[2:4, 2:4] = 16  # the cat, smaller, on the dog
    np.testing.assert_array_equal(dataset.mask(0), expected)
    assert dataset.mask(1).max() == 0 and dataset.has_masks


def test_coco_labels_from_masks_are_derived_once(coco, capsys):
    dataset = build(name="coco", root=str(coco))
    dataset.check()
    assert present(dataset) == {"000000000007": {"person", "toothbrush"}, "000000000009": set()}
    assert "this happens once" in capsys.readouterr().err
    cache = coco / "SegmentationClass" / "train2014.labels.csv"
    with cache.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:2] == [["image", "labels"], ["000000000007", "person;toothbrush"]]
    assert present(build(name="coco", root=str(coco))) == present(dataset)
    assert capsys.readouterr().err == ""

    changed = coco / "SegmentationClass" / "train2014" / "000000000009.png"
    save_mask(changed, mask_of(2))
    later = cache.stat().st_mtime + 10
    os.utime(changed, (later, later))
    assert present(build(name="coco", root=str(coco)))["000000000009"] == {"bicycle"}


def test_coco_labels_are_found_anew_where_they_cannot_be_kept(coco, capsys):
    (coco / "SegmentationClass" / "train2014.labels.csv").mkdir()
    for _ in range(2):
        assert build(name="coco", root=str(coco)).labels.sum() == 2
        assert "found anew at every start" in capsys.readouterr().err


def test_coco_png_masks_go_before_outlines(coco):
    save_mask(coco / "SegmentationClass" / "val2014" / "COCO_val2014_000000000007.png", mask_of(5))
    save_mask(coco / "SegmentationClass" / "val2014" / "COCO_val2014_000000000009.png", mask_of(6))
    dataset = build("val", name="coco", root=str(coco))
    dataset.check()
    np.testing.assert_array_equal(dataset.mask(0), mask_of(5))
    assert dataset.labels[0].sum() == 3


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (7, "annotations[1].segmentation must be a list or a mapping or null, not 7"),
        ("abc", "annotations[1].segmentation must be a list or a mapping or null, not 'abc'"),
        ([7, 8], "annotations[1].segmentation[0] must be a list, not 7"),
        ([[1, 2, 3, True]], "annotations[1].segmentation[0][3] must be"),
        ([[1, 2, 3, 1e300]], "annotations[1].segmentation[0][3] must be"),
        ({"counts": [100, -4]}, "annotations[1].segmentation.counts[1] must be"),
        ([[1, 2, 3]], "annotation 1: the segmentation is no list of polygons"),
        ({"counts": "PQ"}, "annotation 1: the run lengths are no compressed text"),
        ({"counts": [1, 2]}, "annotation 1: run lengths cover 3 of 96 pixels"),
        ({"counts": [None]}, "annotations[1].segmentation.counts[0] must be"),
        ({}, "annotations[1].segmentation.counts is missing"),
    ],
)
def test_coco_outlines_that_are_none(coco, segmentation, message):
    path = coco / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["segmentation"] = segmentation
    path.write_text(json.dumps(content))
    fails(message, lambda: build("val", name="coco", root=str(coco)).check())
    fails("instances_val2014.json", lambda: build("val", name="coco", root=str(coco)).mask(0))


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c.update(annotations={}), "annotations must be a list"),
    (lambda c: c["annotations"].append(3), "must be a mapping, not 3"),
    (lambda c: c["annotations"][0].update(image_id="7"), "annotations[0].image_id must be"),
    (lambda c: c["annotations"][0].update(image_id=-7), "image_id -7, which the file does not"),
    (lambda c: c["annotations"][0].update(area=10**400), "annotations[0].area must be"),
    (lambda c: c["images"].append(c["images"][0]), "two images have one id or file_name"),
    (lambda c: c["images"][0].update(file_name="\ud800"), "images[0].file_name must be text"),
    (lambda c: c["categories"][0].update(id=None), "categories[0].id must be"),
])
def test_coco_entries_of_other_types(coco, change, message):
    path = coco / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    fails(message, lambda: build("val", name="coco", root=str(coco)))


@pytest.mark.parametrize("text, message", [
    ("[" * 100_000, "nested too deeply"), ('{"images": [NaN]}', "NaN is no number"),
    ('{"images":\n [}', "line 2 is no JSON"), ('{"a": ' + "9" * 5000 + "}", "is no JSON"),
])
def test_coco_files_that_are_no_json(coco, text, message):
    (coco / "annotations" / "instances_val2014.json").write_text(text)
    fails(message, lambda: build("val", name="coco", root=str(coco)))


def test_coco_damaged_label_cache(coco):
    build(name="coco", root=str(coco))
    cache = coco / "SegmentationClass" / "train2014.labels.csv"
    for content in (b"image,labels\n\xff,cat\n", b"image,labels\n9,ctt\n", b"image,labels\n9\n"):
        cache.write_bytes(content)
        fails("delete this file, it is made anew", lambda: build(name="coco", root=str(coco)))


def test_coco_images_may_lie_in_images(coco):
    before = build(name="coco", root=str(coco))
    pictures = [np.asarray(before.image(index)) for index in range(len(before))]
    (coco / "images").mkdir()
    (coco / "train2014").rename(coco / "images" / "train2014")
    dataset = build(name="coco", root=str(coco))
    dataset.check()
    assert dataset.names == before.names and len(pictures) == 2
    for index, picture in enumerate(pictures):
        np.testing.assert_array_equal(dataset.image(index), picture)
    with pytest.raises(UserError, match="train2014"):
        before.image(0)


def test_coco_mistakes_name_file_and_remedy(coco):
    def make(split="val"):
        return build(split, name="coco", root=str(coco)).check()

    path = coco / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    content["images"][0]["width"] = 13
    path.write_text(json.dumps(content))
    fails("13x8", make)
    content["categories"][0]["name"] = "persn"
    path.write_text(json.dumps(content))
    os.utime(path, (4e9, 4e9))
    fails("did you mean 'person'?", make)
    path.write_text('{"images": []}')
    os.utime(path, (4e9, 4e9))
    fails("instances_val2014.json: categories is missing", make)
    path.write_text("{")
    os.utime(path, (4e9, 4e9))
    fails("instances_val2014.json: line 1 is no JSON", make)
    path.unlink()
    fails("neither exists", make)
    (coco / "train2014" / "COCO_train2014_000000000009.jpg").unlink()
    fails("000000000009.jpg does not exist", lambda: make("train"))
    (coco / "train2014").rename(coco / "other")
    fails("neither train2014 nor images/train2014", lambda: make("train"))


def test_polygons_cover_the_pixels_whose_centre_is_inside():
    triangle = fill_polygon(np.array([[0, 0], [4, 0], [0, 4]]), (5, 4))
    expected = [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(triangle, np.array(expected, dtype=bool))
    whole = fill_polygon(np.array([[-3, -3], [9, -3], [9, 9], [-3, 9]]), (5, 4))
    assert whole.shape == (4, 5) and whole.all()
    two_parts = region([[0, 0, 1, 0, 1, 1, 0, 1], [3, 3, 5, 3, 5, 4, 3, 4]], (5, 4))
    assert two_parts.sum() == 3 and two_parts[0, 0] and two_parts[3, 3:].all()
    assert not region([[1, 1, 3, 3]], (5, 4)).any()


def test_run_lengths_go_down_the_columns():
    values = region({"counts": [1, 2, 3], "size": [3, 2]}, (2, 3))
    np.testing.assert_array_equal(values, [[False, False], [True, False], [True, False]])
    with pytest.raises(ValueError, match="cover 5 of 6"):
        region({"counts": [5], "size": [3, 2]}, (2, 3))


# Folders


@pytest.fixture
def folder(tmp_path):
    save_image(tmp_path / "images" / "été 1.jpg")
    save_image(tmp_path / "images" / "sub" / "b.v2.PNG")
    save_image(tmp_path / "images" / "c.jpeg")
    save_image(tmp_path / "images" / "d.webp")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "labels.csv").write_text(
        "image,labels\nété 1.jpg,dog; cat\nsub/b.v2,\nc,cat\n", encoding="utf-8-sig"
    )
    save_mask(tmp_path / "masks" / "c.png", mask_of(1, 255))
    save_mask(tmp_path / "masks" / "d.png", mask_of(2, 2))
    return tmp_path


def own(folder, split="train", **data):
    return build(split, name="folder", root=str(folder),
                 **{"images": "images", "labels": "labels.csv", **data})  # fmt: skip


def test_folder_takes_the_rows_of_the_csv(folder, capsys):
    dataset = own(folder)
    dataset.check()
    assert dataset.classes == ("cat", "dog") and not dataset.has_masks
    assert present(dataset) == {"c": {"cat"}, "sub/b.v2": set(), "été 1": {"cat", "dog"}}
    assert dataset.image(1).size == (12, 8) and dataset.mask(1) is None
    assert "1 of 4 images" in capsys.readouterr().err


def test_folder_classes_and_columns(folder):
    (folder / "classes.txt").write_text("dog\ncat\n\nbird\n")
    dataset = own(folder, classes="classes.txt")
    assert dataset.classes == ("dog", "cat", "bird") and len(dataset.palette) == 4
    np.testing.assert_array_equal(dataset.labels, [[0, 1, 0], [0, 0, 0], [1, 1, 0]])
    (folder / "labels.csv").write_text("image,dog,cat\nc.jpeg,1,0\nd,0,0\n")
    assert present(own(folder)) == {"c": {"dog"}, "d": set()}
    assert own(folder).classes == ("cat", "dog")


def test_folder_validation_set_is_what_has_a_mask(folder, capsys):
    dataset = own(folder, "val", masks="masks")
    assert "sorted order" in capsys.readouterr().err
    dataset.check()
    assert dataset.has_masks
    assert present(dataset) == {"c": {"cat"}, "d": {"dog"}}
    np.testing.assert_array_equal(dataset.mask(0), mask_of(1, 255))


def test_folder_validation_set_without_masks_is_the_training_set(folder):
    dataset = own(folder, "val")
    assert not dataset.has_masks and dataset.names == own(folder).names


def test_folder_validation_set_of_its_own(folder):
    (folder / "images" / "c.jpeg").rename(folder / "c.jpeg")
    (folder / "labels.csv").write_text("image,labels\nété 1,dog;cat\n")
    save_image(folder / "held" / "x.jpg")
    save_image(folder / "held" / "y.jpg")
    save_mask(folder / "gt" / "x.png", mask_of(2))
    (folder / "held.csv").write_text("image,labels\nx,cat\ny,dog\n")
    both = own(folder, "val", val_images="held", val_labels="held.csv", val_masks="gt")
    both.check()
    assert present(both) == {"x": {"cat"}, "y": {"dog"}}
    assert both.has_masks and both.mask(1) is None
    masks = own(folder, "val", val_images="held", val_masks="gt", masks="masks")
    assert present(masks) == {"x": {"dog"}}
    labels = own(folder, "val", val_images="held", val_labels="held.csv", masks="masks")
    assert present(labels) == present(both) and not labels.has_masks
    fails("data.val_images needs", lambda: own(folder, "val", val_images="held"))


def test_folder_subset_by_val_labels(folder):
    (folder / "val.csv").write_text("image,labels\nc.jpeg,cat\n")
    dataset = own(folder, "val", masks="masks", val_labels="val.csv")
    assert dataset.names == ["c"] and dataset.has_masks


def test_folder_images_with_one_stem_keep_their_suffix(folder):
    save_image(folder / "images" / "c.png")
    (folder / "labels.csv").write_text("image,labels\nc.png,cat\nc.jpeg,dog\nd,\n")
    assert present(own(folder)) == {"c.jpeg": {"dog"}, "c.png": {"cat"}, "d": set()}
    (folder / "labels.csv").write_text("image,labels\nc,cat\n")
    fails("line 2: the image 'c' could be c.jpeg or c.png", lambda: own(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("été 1.jpg,dog\n", "the first line must be the header 'image,labels'"),
        ("", "the first line must be the header"),
        ("image,labels\nc,dog,cat\n", "line 2: 3 fields where the header has 2"),
        ("image,labels\nc,dog\nc.jpeg,cat\n", "line 3: the image 'c.jpeg' has a row already"),
        ("image,labels\nsub/b.v3.PNG,dog\n", "did you mean 'sub/b.v2.PNG'?"),
        ("image,labels\nc,dgo\n", "line 2: 'dgo' is no class; did you mean 'dog'?"),
        ("image,sight\nc,dog\n", "line 2: 'dog' in the column 'sight' where 0 or 1 belongs"),
        ('image,labels\nc,"dog\nc.jpeg,cat\n', "line 2: the CSV file cannot be read"),
        ('image,labels\nc,"dog\nd,cat"\n', "line 2: a quote is opened and not closed"),
        ('image,labels\nc,"dog"s\n', "line 2: the CSV file cannot be read"),
        ("image,dog,dog\nc,1,0\n", "line 1: two columns are named 'dog'"),
        ("image,dog,\nc,1,0\n", "line 1: a column has no name"),
        ("image,labels\nc,d\0g\n", "line 2: the CSV file is not in UTF-8"),
        ("image,labels\nc;dog\n", "line 2: 1 fields where the header has 2; separate columns"),
    ],
)
def test_folder_csv_mistakes_name_file_and_line(folder, content, message):
    (folder / "labels.csv").write_text(content)
    (folder / "classes.txt").write_text("dog\ncat\n")
    fails(message, lambda: own(folder, classes="classes.txt"))
    fails("labels.csv", lambda: own(folder, classes="classes.txt"))


def test_folder_csv_in_another_encoding(folder):
    for encoding in ("latin-1", "utf-16"):
        (folder / "labels.csv").write_text("image,labels\n\xe9t\xe9 1,dog\n", encoding=encoding)
        fails("the CSV file is not in UTF-8", lambda: own(folder))


def test_folder_names_may_differ_in_case_and_unicode_form(folder):
    rows = "image,labels\n\xe9T\xe9 1.JPG,dog\nC,\xe9t\xe9\nSUB/b.V2.png,"
    rows = unicodedata.normalize("NFD", rows)
    (folder / "labels.csv").write_text(rows, encoding="utf-8")
    (folder / "masks" / "c.png").rename(folder / "masks" / "C.PNG")
    save_mask(folder / "masks" / unicodedata.normalize("NFD", "\xe9t\xe9 1.png"), mask_of(2))
    dataset = own(folder, masks="masks")
    assert present(dataset) == {"\xe9t\xe9 1": {"dog"}, "c": {"\xe9t\xe9"}, "sub/b.v2": set()}
    paths = [dataset.masks.path(name) for name in dataset.names]
    assert [path and path.suffix for path in paths] == [".PNG", None, ".png"]


def test_exact_names_go_before_similar_ones():
    names = Names({"a": "1", "A": "2", "B": "3", "\xe9": "4", "e\u0301": "5"})
    assert [names.find(name) for name in ("a", "A", "b", "c")] == ["1", "2", "3", None]
    assert names.find("e\u0301") == "5" and names.find("\xc9") is None  # it could be either


def test_an_exact_mask_goes_before_similar_ones(folder):
    save_mask(folder / "masks" / "C.png", mask_of(2))
    dataset = own(folder, "val", masks="masks")
    assert [dataset.masks.path(name).name for name in dataset.names] == ["c.png", "d.png"]


def test_folder_mistakes_in_paths_and_classes(folder):
    fails("data.images is empty", lambda: own(folder, images=""))
    fails("data.labels is empty", lambda: own(folder, labels=""))
    fails("nowhere.csv: no such file", lambda: own(folder, labels="nowhere.csv"))
    fails("nowhere: no such folder", lambda: own(folder, images="nowhere"))
    (folder / "other").mkdir()
    fails("there is no image in this folder", lambda: own(folder, images="other"))
    fails("for example c.png", lambda: own(folder, "val", masks="other"))
    for content, message in (
        ("background\ndog\n", "remove 'background'"),
        ("Background\ndog\n", "remove 'Background'"),
        ("dog\ndog\n", "'dog' is listed twice"),
        ("\n", "there is no class in it"),
    ):
        (folder / "classes.txt").write_text(content)
        fails(message, lambda: own(folder, classes="classes.txt"))


# What check() finds, and what it must not touch


def test_check_finds_broken_and_missing_images(folder):
    dataset = own(folder)
    (folder / "images" / "c.jpeg").write_text("no image")
    (folder / "images" / "été 1.jpg").unlink()
    fails("c.jpeg is not an image", dataset.check)
    fails("(1 more file has problems)", dataset.check)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((9, 12)), "the mask is 12x9 pixels but"),
        (mask_of(3), "the mask holds the value 3; allowed are 0 (background), 1..2"),
        (np.full((8, 12, 3), (1, 2, 2)), "this is a colour picture"),
    ],
)
def test_check_finds_masks_that_do_not_fit(folder, mask, message):
    save_mask(folder / "masks" / "c.png", mask)
    (folder / "val.csv").write_text("image,labels\nc,cat\nd,dog\n")
    dataset = own(folder, "val", masks="masks", val_labels="val.csv")
    fails(message, dataset.check)
    fails("c.png", dataset.check)


def test_checking_many_masks_is_told(folder, monkeypatch, capsys):
    dataset = own(folder, "val", masks="masks")
    dataset.check()
    assert "checking the" not in capsys.readouterr().err
    monkeypatch.setattr(datasets, "MANY_MASKS", 1)
    dataset.check()
    assert "checking the values of 2 masks" in capsys.readouterr().err
    own(folder, masks="masks").check()  # for training
    assert "checking the" not in capsys.readouterr().err
    save_mask(folder / "masks" / "c.png", mask_of(3))
    fails("the value 3", dataset.check)


def noise_image(path):
    values = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.mark.parametrize("name", ["c.jpeg", "sub/b.v2.PNG"])
def test_check_finds_images_that_were_cut_off(folder, name, monkeypatch):
    path = folder / "images" / name
    noise_image(path)
    whole = path.read_bytes()
    dataset = own(folder)
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "read_image", None)  # whole files are not decoded
        dataset.check()
        path.write_bytes(whole + b"\0" * 100)
        dataset.check()
    path.write_bytes(whole + b"a film of the same moment" * 100)
    dataset.check()
    for length in (len(whole) - 100, len(whole) // 2):
        path.write_bytes(whole[:length])
        fails(name, dataset.check)
        fails("cannot be read as an image", dataset.check)


def test_training_sets_never_read_masks(voc, folder):
    for path in [*(voc / "SegmentationClassAug").iterdir(), *(folder / "masks").iterdir()]:
        path.write_text("broken")
    for dataset in (build(name="voc", root=str(voc)), own(folder, masks="masks")):
        dataset.check()
        assert dataset.has_masks
    fails("c.png", lambda: dataset.mask(0))


def test_an_empty_set_is_a_user_error(folder):
    (folder / "labels.csv").write_text("image,labels\n")
    (folder / "classes.txt").write_text("dog\n")
    fails("below the header there are no rows", lambda: own(folder, classes="classes.txt"))


def test_masks_may_have_a_palette(tmp_path):
    picture = Image.fromarray(mask_of(0, 1, 2, 255)).convert("P")
    picture.putdata(list(mask_of(0, 1, 2, 255).ravel()))
    picture.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 2), mask_of(0, 1, 2, 255))
