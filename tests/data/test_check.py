"""The look at a data set: each way in which data can lie, made of files."""

import json

import numpy as np
import pytest
from PIL import Image

from cosa.config import from_dict
from cosa.core.errors import UserError
from cosa.data import build_dataset
from cosa.data.__main__ import main
from cosa.data.check import examine, examine_masks, report, statistics
from cosa.data.check.rules import judged
from cosa.data.check.statistics import Labels, Statistics, spread
from tests.helpers.folder_data import SIDE, blob, write_folder

CLASSES = ("cat", "dog", "sofa")


def looked(data):
    data = from_dict({"data": data}).data
    return examine(build_dataset(data, "train"), build_dataset(data, "val"), data.negatives)


def found(data):
    """Sentences of errors, and of warnings."""
    findings = looked(data).findings
    return tuple([f.sentence for f in findings if f.severity == severity]
                 for severity in ("error", "warning"))


def three_classes(make, count=12, classes=CLASSES):
    """Images of one class each, with the masks that ``make`` makes of its value."""
    return {f"{k:02d}": (classes[k % len(classes)], make(k % len(classes) + 1))
            for k in range(count)}


def test_a_sound_data_set_has_no_finding(tmp_path):
    data = write_folder(tmp_path / "own", three_classes(lambda k: blob(k, border=255)))
    seen = looked(data)
    assert seen.findings == []
    training, validation = seen.parts
    assert training.labels == Labels(images=12, of_class=[4, 4, 4], unlabelled=0)
    assert training.masks is None and training.images.smallest == (SIDE, SIDE)
    assert (training.images.lowest, training.images.highest) == (0, 255)
    masks = validation.masks
    assert masks.masks == [12, 4, 4, 4] and masks.ignored_masks == 12
    assert masks.pixels == [12 * (1600 - 576), 1600, 1600, 1600]
    assert masks.ignored_pixels == 12 * 176 and masks.border.value == 0
    assert json.loads(json.dumps(seen.tree()))["validation"]["masks"]["read"] == 12
    rows = [line.split() for line in seen.table().splitlines()]
    assert ["dog", "4", "4", "4", "8.3%"] in rows and ["looked", "at", "12", "12", "12"] in rows


def test_the_masks_of_training_images_are_not_read(tmp_path, monkeypatch):
    data = write_folder(tmp_path / "own", three_classes(blob))
    training, validation = (build_dataset(from_dict({"data": data}).data, split)
                            for split in ("train", "val"))
    monkeypatch.setattr(training, "mask", lambda index: pytest.fail("a training mask is read"))
    assert examine(training, validation).parts[1].masks.read == 12


# Masks


@pytest.mark.parametrize("share, labelled", [(1.0, True), (0.7, True), (1.0, False)])
def test_255_meant_as_the_object(tmp_path, share, labelled):
    """As in a picture in black and white; the labels may come from the masks as well."""
    images = three_classes(blob)
    for k, name in enumerate(images):
        if k < share * len(images):
            images[name] = (images[name][0], blob(255))
    data = write_folder(tmp_path / "own", images)
    if not labelled:
        data |= {"val_images": "images", "val_masks": "masks"}
    errors, _ = found(data)
    assert f"{int(np.ceil(share * 12))} of 12 validation masks hold no value but 0 and 255, such " \
           f"as {tmp_path}/own/masks/00.png: write the class index, 1..3" in errors[0]


def test_a_few_objects_that_are_ignored_whole_are_usual(tmp_path):
    images = three_classes(blob, 30)
    images["04"] = ("dog", blob(255))
    assert found(write_folder(tmp_path / "own", images)) == ([], [])


def test_255_nearly_everywhere(tmp_path):
    def ignored(value):
        mask = np.full((SIDE, SIDE), 255, np.uint8)
        mask[:3, :20] = value
        mask[:3, 20:] = 0
        return mask

    errors, _ = found(write_folder(tmp_path / "own", three_classes(ignored)))
    assert len(errors) == 1 and "12 of 12 validation masks are 255 nearly everywhere" in errors[0]
    assert "masks/00.png" in errors[0]


def test_background_alone_though_labels_name_classes(tmp_path):
    errors, _ = found(write_folder(tmp_path / "own", three_classes(lambda _: blob(0))))
    assert "12 of 12 validation masks hold the background alone though the labels" in errors[0]


@pytest.mark.parametrize("outline", [[], [[5, 5, 20, 20]]])
def test_annotations_of_coco_without_an_outline(tmp_path, outline):
    for split in ("train2014", "val2014"):
        (tmp_path / split).mkdir()
        items = []
        for k in range(4):
            noise = np.random.default_rng(k).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / f"{split}/{k}.jpg")
            items.append({"id": k, "image_id": k, "category_id": 17 + k % 2, "area": 100.0,
                          "iscrowd": 0, "segmentation": outline})
        tree = {
            "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
            "images": [{"id": k, "file_name": f"{k}.jpg", "width": SIDE, "height": SIDE}
                       for k in range(4)],
            "annotations": items,
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / f"annotations/instances_{split}.json"
        path.write_text(json.dumps(tree), encoding="utf-8")
    (error,), _ = found({"name": "coco", "root": str(tmp_path)})
    assert "4 of 4 validation masks hold the background alone" in error
    assert "instances_val2014.json, image 0" in error


def test_masks_without_any_class_and_without_labels(tmp_path):
    data = write_folder(tmp_path / "own", three_classes(lambda _: blob(0)))
    errors, _ = found(data | {"val_images": "images", "val_masks": "masks"})
    assert "none of 12 validation masks holds a class" in errors[0] and "00.png" in errors[0]


@pytest.mark.parametrize("background, named", [(7, "7, which means 'field',"), (255, "255")])
def test_a_background_that_is_not_0(tmp_path, background, named):
    """As in a PNG file whose palette has the background elsewhere."""
    images = three_classes(lambda k: blob(k, background))
    data = write_folder(tmp_path / "own", images, (*CLASSES, "car", "bus", "boat", "field"))
    for more in ({}, {"val_images": "images", "val_masks": "masks"}):
        errors, _ = found(data | more)
        assert any(f"is in none of 12 validation masks, and {named} is in 12" in e for e in errors)


def test_objects_that_fill_their_images_are_no_background(tmp_path):
    images = three_classes(lambda k: blob(k, k))
    assert found(write_folder(tmp_path / "own", images)) == ([], [])


def test_labels_of_other_classes_than_the_masks(tmp_path):
    wrong = {1: 2, 2: 3, 3: 1}
    errors, _ = found(write_folder(tmp_path / "own", three_classes(lambda k: blob(wrong[k]))))
    assert "12 of 12 validation masks do not hold the classes of the labels (12 lack a labelled " \
           "class, 12 hold one that is not labelled)" in errors[0]
    assert f"{tmp_path}/own/masks/00.png (labels: 'cat'; mask: 'dog'): names or order" in errors[0]


def test_some_labels_that_disagree_are_odd(tmp_path):
    images = three_classes(blob)
    images["03"] = ("cat;sofa", images["03"][1])
    images["04"] = ("", images["04"][1])
    errors, warnings = found(write_folder(tmp_path / "own", images))
    assert not errors and len(warnings) == 2  # the other one: an image without labels
    assert "2 of 12 validation masks do not hold the classes of the labels (1 lack a labelled " \
           "class, 1 hold one" in warnings[1] and "03.png (labels: 'cat', 'sofa'; mask: 'cat')" \
           in warnings[1]


def test_a_value_that_is_no_class_is_still_refused(tmp_path):
    images = three_classes(blob)
    images["05"] = ("sofa", blob(9))
    data = from_dict({"data": write_folder(tmp_path / "own", images)}).data
    with pytest.raises(UserError, match="05.png: the mask holds the value 9"):
        build_dataset(data, "val").check()


def test_the_half_that_is_held_out_is_looked_at(tmp_path):
    images = three_classes(blob)
    for name in list(images)[6:]:
        images[name] = (images[name][0], blob(255))
    for name in list(images)[:2]:
        images[name] = (images[name][0], blob(255))
    data = write_folder(tmp_path / "own", images)
    errors, _ = found(data | {"hold_out": True})
    assert "8 of 12 validation masks" in errors[0]


# A sample


def test_a_sample_is_evenly_spread():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 4) == [0, 1, 2]


def look(values, labels=None):
    """Masks of one value each, and the indices of those that were read."""
    seen = []

    def read(index):
        seen.append(index)
        return blob(values[index])

    made = examine_masks(("cat",), range(len(values)), read,
                         lambda index: labels and labels[index], str)
    return made, seen


def test_of_many_masks_a_sample_is_read(monkeypatch, capsys):
    monkeypatch.setattr(report, "MASKS", 5)
    made, seen = look([1, 0] * 10)
    assert sorted(seen) == [0, 4, 8, 12, 16] and made.findings == []
    assert (made.parts[0].masks.there, made.parts[0].masks.read) == (20, 5)
    assert "5 of 20" in made.table() and capsys.readouterr().err == ""


def test_all_are_read_before_a_sample_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(report, "MASKS", 5)
    values = [255, 1, 1, 1] * 5
    made, seen = look(values, [[1]] * 20)
    assert len(seen) == 25 and made.parts[0].masks.read == 20
    assert [f.severity for f in made.findings] == ["warning"]
    assert "5 of 20 masks look wrong: looking at all" in capsys.readouterr().err
    made, seen = look([255, 255, 255, 1] * 5, [[1]] * 20)
    with pytest.raises(UserError, match="15 of 20 true masks hold no value but 0 and 255"):
        made.require()


def test_masks_of_which_none_can_be_read():
    def read(index):
        raise UserError(f"{index}.png: the mask holds the value 9")

    made = examine_masks(("cat",), range(3), read, lambda index: None, str)
    assert [f.sentence for f in made.findings] == [
        "none of 3 true masks can be scored: 0.png: the mask holds the value 9"]
    assert made.findings[0].severity == "error"


def test_a_background_may_be_another_value_though_0_occurs(tmp_path):
    """Where a class has the value 0: what looks so may be right, in rooms with walls."""
    masks = three_classes(lambda k: blob(k % 3, 3), count=9, classes=("cat", "dog", "field"))
    made = examine_masks(("cat", "dog", "field"), range(9), lambda k: list(masks.values())[k][1],
                         lambda index: None, str)
    (finding,) = made.findings
    assert finding.severity == "warning"
    assert "0, the background, is in 3 of 9 true masks, and 3, which means 'field'," in (
        finding.sentence)
    turned = examine_masks(("cat",), range(9), lambda k: blob(k % 2, 255), lambda index: None, str)
    assert turned.findings == [], "what surrounds pictures may be 255"


def test_images_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "HEADERS", 4)
    monkeypatch.setattr(statistics, "DECODED", 3)
    images = looked(write_folder(tmp_path / "own", three_classes(blob))).parts[0].images
    assert (images.sized, images.decoded) == (4, 3)


def test_true_masks_alone_need_no_class(capsys):
    """That images hold no class may be what is tested; not so, if the masks are ignored there."""
    made, _ = look([0, 0, 0])
    assert [f.severity for f in made.findings] == ["warning"]
    assert [f.severity for f in look([0, 255, 0])[0].findings] == ["error"]
    assert [f.severity for f in look([0, 255, 0], [[], [], []])[0].findings] == ["warning"]


# Labels


def test_a_class_that_nothing_is_told_from(tmp_path):
    images = {name: ("cat", blob(1)) for name in "abcdef"} | {"g": ("", blob(0))}
    errors, _ = found(write_folder(tmp_path / "own", images, ("cat", "dog")))
    assert errors == ["all 6 training images that have a label have the same, 'cat': there is "
                      "nothing to tell it from, and classification learns nothing; set "
                      "data.negatives=true, or add images of other things, with a class of their "
                      "own"]


def test_a_single_class_is_told_from_images_without_it(tmp_path):
    """Where the user says that these show none of the classes."""
    images = {name: ("cat", blob(1)) for name in "abcdef"}
    (error,), _ = found(write_folder(tmp_path / "alone", images))
    assert ("; add images without it, with an empty label (of subfolders: in one called "
            "'background'), and set data.negatives=true, or add images of other things") in error
    (error,), _ = found(write_folder(tmp_path / "alone again", images) | {"negatives": True})
    assert "; add images without it, with an empty label" in error and "set data.neg" in error
    data = write_folder(tmp_path / "own", images | {name: ("", blob(0)) for name in "gh"})
    (error,), warnings = found(data)
    assert "learns nothing; set data.negatives=true, or add" in error
    assert warnings[-1] == ("2 of 8 training images have no label and are not trained on: if they "
                            "show none of the classes, set data.negatives=true")
    assert found(data | {"negatives": True}) == ([], [])
    assert looked(data | {"negatives": True}).tree()["training"]["negatives"] is True


def test_a_class_in_nearly_every_image_and_a_few_without(tmp_path):
    images = {f"{k:02d}": ("cat" + ";dog" * (k % 2), None) for k in range(40)}
    data = write_folder(tmp_path / "own", images | {"x": ("", None)}) | {"negatives": True}
    _, warnings = found(data)
    assert warnings[0].startswith("'cat' is in (nearly) every one of 41 training images")
    images |= {f"x{k}": ("", None) for k in range(4)}
    data = write_folder(tmp_path / "other", images)
    assert "40 training" in found(data)[1][0] and found(data | {"negatives": True}) == ([], [])


def test_without_any_label_negatives_are_no_help(tmp_path):
    data = write_folder(tmp_path / "own", {name: ("", None) for name in "abc"}, CLASSES)
    assert "no training image has a label" in found(data | {"negatives": True})[0][0]


def test_a_class_in_every_image_and_one_in_none(tmp_path):
    images = {name: ("cat" + ";dog" * (name < "c"), None) for name in "abcdef"}
    errors, warnings = found(write_folder(tmp_path / "own", images, CLASSES))
    assert errors == [] and len(warnings) == 3
    assert warnings[0].startswith("'cat' is in (nearly) every one of 6 training images")
    assert warnings[1].startswith("no training image has the label 'sofa'")
    assert warnings[2].startswith("'cat' is in (nearly) every one of 6 validation images")


def test_no_label_at_all(tmp_path):
    data = write_folder(tmp_path / "own", {name: ("", None) for name in "abc"}, CLASSES)
    assert "no training image has a label" in found(data)[0][0]


# Names


@pytest.mark.parametrize("classes, named", [
    (("cat", "Cat "), "the classes 'cat', 'Cat ' differ in case or blanks only"),
    (("hotdog", "Hot Dog"), "'hotdog', 'Hot Dog' differ"),
    (("cat", "sofa", "cat|sofa"), "the class 'cat|sofa' looks like several"),
    (("dog", "cat;sofa"), "'cat;sofa'"),
    (("cat", "cat,sofa"), "'cat,sofa'"),
    (("cat", "sofa", "cat sofa"), "'cat sofa'"),
    (("nan", "cat"), "'nan' is among the class names"),
    (("cat", "None"), "'None' is"),
    (("cat", "NULL"), "'NULL' is"),
])
def test_names_that_are_a_mistake(classes, named):
    findings = judged(Statistics("training", list(classes)))
    assert len(findings) == 1 and findings[0].severity == "error"
    assert named in findings[0].sentence


def test_names_of_several_words_are_names():
    classes = ["hot dog", "dog", "cat", "fire-hydrant", "traffic light", "A", "B"]
    assert judged(Statistics("training", ["dog, big", "cat"])) == []
    assert judged(Statistics("training", classes)) == []


def test_names_of_a_labels_file(tmp_path):
    images = {"a": ("cat", None), "b": ("sofa", None), "c": ("cat sofa", None), "d": ("nan", None)}
    data = write_folder(tmp_path / "own", images) | {"label_separator": "none"}
    errors, _ = found(data)
    assert len(errors) == 2 and "'nan'" in errors[0] and "'cat sofa'" in errors[1]


@pytest.mark.parametrize("classes, images, named", [
    (("dgo", "dog"), [1, 4], "'dgo' (1) beside 'dog' (4)"),
    (("dining tabel", "dining table"), [2, 6], "'dining tabel' (2) beside 'dining table' (6)"),
    (("giraffe", "girafe"), [9, 2], "'girafe' (2) beside 'giraffe' (9)"),
    (("cat", "car"), [1, 9], None),
    (("dgo", "dog"), [2, 5], None),
    (("dgo", "dog"), [3, 30], None),
    (("dgo", "dog"), [0, 30], None),
])
def test_labels_that_look_misspelt(classes, images, named):
    labels = Labels(images=40, of_class=[*images, 20], unlabelled=0)
    findings = judged(Statistics("training", [*classes, "sofa"], labels))
    told = [f.sentence for f in findings if "misspelt" in f.sentence]
    assert [f.severity for f in findings if "misspelt" in f.sentence] == ["warning"] * len(told)
    assert len(told) == (named is not None) and all(named in sentence for sentence in told)


# Images


def test_images_of_one_colour(tmp_path):
    data = write_folder(tmp_path / "own", three_classes(lambda _: None))
    for k in range(3):
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"own/images/0{k}.png")
    errors, warnings = found(data)
    assert not errors
    assert "3 of 12 training images are of a single colour, such as 00" in warnings[0]
    for path in (tmp_path / "own/images").iterdir():
        Image.new("RGB", (8, 8), "red").save(path)
    assert "each of 12 training images is of a single colour" in found(data)[0][0]


def test_images_that_are_nearly_black(tmp_path):
    data = write_folder(tmp_path / "own", three_classes(lambda _: None))
    for k, path in enumerate((tmp_path / "own/images").iterdir()):
        Image.fromarray(blob(1 + k % 3)).save(path)
    errors, warnings = found(data)
    assert not errors and "no training image has a value above 3 of 255" in warnings[0]


# The program


def test_the_program_prints_the_table(tmp_path, capsys):
    data = write_folder(tmp_path / "own", three_classes(blob))
    words = [f"data.{key}={value}" for key, value in data.items()]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split("  ")[0] == "class" and "12 looked at" in out
    assert not [line for line in err.splitlines() if line.startswith("warning")]


def test_the_program_refuses_after_its_table(tmp_path, capsys):
    data = write_folder(tmp_path / "own", three_classes(lambda _: blob(255)))
    with pytest.raises(UserError, match="hold no value but 0 and 255"):
        main([f"data.{key}={value}" for key, value in data.items()])
    assert "background" in capsys.readouterr().out


def test_of_many_classes_the_commonest_and_the_rarest_are_shown():
    classes = [f"c{k:02d}" for k in range(80)]
    part = Statistics("training", classes, Labels(99, list(range(80)), 0))
    rows = report.Report([part], []).table().splitlines()
    names = [row.split()[0] for row in rows if row.startswith("c")][1:]
    assert names == classes[:12] + classes[-12:] and "(56 other classes)" in "\n".join(rows)
    assert [row.split()[1] for row in rows if row.startswith("c79")] == ["79"]
