"""A subfolder of images for each class: no labels file at all."""

import pytest

from tests.helpers.labels import dataset_of, labels_of, refusal, save_images


@pytest.fixture
def root(tmp_path):
    save_images(tmp_path / "images", "cat/a.jpg", "cat/young/b.JPG", "hot dog/a.png", "bird/x.jpeg")
    return tmp_path


EXPECTED = {"cat/a": {"cat"}, "cat/young/b": {"cat"}, "hot dog/a": {"hot dog"}, "bird/x": {"bird"}}


def test_the_first_folder_is_the_class(root, capsys):
    assert labels_of(root) == EXPECTED
    assert capsys.readouterr().err == (
        f"note: {root}/images: 4 images, 3 classes, a subfolder per class\n")
    assert dataset_of(root).classes == ("bird", "cat", "hot dog")
    assert labels_of(root, labels="images") == EXPECTED
    assert labels_of(root, "val") == EXPECTED
    assert capsys.readouterr().err.count("note") == 2, "the same images are told of once"


def test_what_systems_leave_behind_is_no_class(root, capsys):
    save_images(root / "images", ".thumbs/a.jpg", "__MACOSX/cat/a.jpg")
    (root / "images/cat/._a.jpg").write_bytes(b"\0\5\x16\7Mac OS X")
    (root / "images/readme.txt").write_bytes(b"\xff no text of ours")
    (root / "images/empty").mkdir()
    capsys.readouterr()
    assert labels_of(root) == EXPECTED
    assert "take no part" not in capsys.readouterr().err, "they are no images"


@pytest.mark.parametrize("name", ["background", "Background"])
def test_the_folder_background_holds_images_of_no_class(root, name):
    save_images(root / "images", f"{name}/n.jpg")
    assert labels_of(root) == EXPECTED | {f"{name}/n": set()}
    assert dataset_of(root).classes == ("bird", "cat", "hot dog")


def test_images_beside_the_folders_are_asked_for(root):
    save_images(root / "images", "stray.jpg")
    message = refusal(root)
    assert "data.labels is empty, and" in message and "such as stray.jpg: move" in message
    (root / "labels.csv").write_text("image,labels\nstray,cat\ncat/a.jpg,bird\n")
    assert labels_of(root, labels="labels.csv") == {"stray": {"cat"}, "cat/a": {"bird"}}


def test_parts_of_a_data_set_are_no_classes(root):
    save_images(root / "set", "train/cat/a.jpg", "val/cat/b.jpg")
    message = refusal(root, images="set")
    assert "'train' is a part of a data set" in message and f"{root}/set/train" in message


def test_validation_images_may_lie_in_folders_as_well(root):
    save_images(root / "val", "cat/v.jpg", "bird/w.jpg")
    assert labels_of(root, "val", val_images="val") == {"cat/v": {"cat"}, "bird/w": {"bird"}}
    save_images(root / "val", "horse/v.jpg")
    assert "'horse' is no class" in refusal(root, "val", val_images="val")


def test_images_without_folders_need_labels(tmp_path):
    save_images(tmp_path / "images", "a.jpg")
    message = refusal(tmp_path)
    assert message.startswith("data.labels is empty, and")
    assert "holds no labels of a known format: set data.labels to a CSV file, COCO's" in message
