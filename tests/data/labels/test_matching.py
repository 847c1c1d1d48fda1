"""Which image a labels file means."""

import pytest

from cosa.core.errors import UserError
from cosa.data.labels import ImageIndex, LabelTable, Row, match_rows
from tests.helpers.labels import labels_of, refusal, save_images


def index(folder, *names):
    return ImageIndex({name: (name, folder / name) for name in names})


IMAGES = ("a.jpg", "cats/b.png", "cats/c.jpg", "dogs/c.jpg", "my photo.v2.JPG", "e.jpg", "e.png")


@pytest.mark.parametrize("written, found", [
    ("a.jpg", "a.jpg"), ("a", "a.jpg"), ("./a.jpg", "a.jpg"), ("../pets/a.jpg", "a.jpg"),
    ("/home/me/a.jpg", "a.jpg"), ("C:\\Users\\me\\pets\\a.jpg", "a.jpg"),
    ("b.png", "cats/b.png"), ("b", "cats/b.png"), ("x/cats/b", "cats/b.png"), ("A.JPG", "a.jpg"),
    ("cats/c.jpg", "cats/c.jpg"), ("pets\\dogs\\c.jpg", "dogs/c.jpg"), ("e.png", "e.png"),
    ("/data/upload/1/ab12cd34-a.jpg", "a.jpg"), ("images/1/ab12cd34-b.png", "cats/b.png"),
    ("/data/local-files/?d=pets/cats/c.jpg", "cats/c.jpg"),
    ("/data/local-files/?d=my%20photo.v2.JPG", "my photo.v2.JPG"),
    ("https://host/pets/my%20photo.v2.JPG?sign=/x#y", "my photo.v2.JPG"),
    ("file:///C:/pets/dogs/c.jpg", "dogs/c.jpg"), ("my photo.v2", "my photo.v2.JPG"),
])
def test_found(tmp_path, written, found):
    assert index(tmp_path, *IMAGES).find(written) == [found]


@pytest.mark.parametrize("written", [
    "dogs/b.png", "my photo", "my photo.v3", "a.png", "", ".", "..", "x.jpg", "cats", "/",
])
def test_not_found(tmp_path, written):
    assert index(tmp_path, *IMAGES).find(written) == []


@pytest.mark.parametrize("written, found", [
    ("c.jpg", ["cats/c.jpg", "dogs/c.jpg"]), ("c", ["cats/c.jpg", "dogs/c.jpg"]),
    ("e", ["e.jpg", "e.png"]),
])
def test_several(tmp_path, written, found):
    assert index(tmp_path, *IMAGES).find(written) == found


def test_the_whole_path_goes_before_an_end_and_a_longer_end_before_a_shorter(tmp_path):
    images = index(tmp_path / "pets", "a.jpg", "sub/a.jpg", "x/sub/a.jpg")
    assert images.find("a.jpg") == ["a.jpg"]
    assert images.find("/data/pets/sub/a.jpg") == ["sub/a.jpg"]
    assert images.find("x/sub/a.jpg") == ["x/sub/a.jpg"]
    assert images.find("pets/a.jpg") == ["a.jpg"]
    assert images.shared("/data/pets/sub/a.jpg", "sub/a.jpg") == 3
    assert images.shared("PETS\\sub\\a", "sub/a.jpg") == 3
    both = index(tmp_path / "pets", "b/a.jpg", "x/pets/b/a.jpg")
    assert len(both.find("pets/b/a.jpg")) == 2


def table(tmp_path, *names):
    rows = [Row(f"line {k}", name, [str(k)]) for k, name in enumerate(names, start=2)]
    return LabelTable(tmp_path / "labels.csv", "CSV", rows)


def test_of_two_rows_the_nearer_has_the_image(tmp_path):
    """A run on photos/cats alone, with the labels of photos/dogs in the same file."""
    images = index(tmp_path / "photos/cats", "1.jpg")
    rows = table(tmp_path, "dogs/1.jpg", "cats/1.jpg", "birds/1.jpg")
    found = match_rows(rows, images, all_of_them=False)
    assert {key: row.image for key, row in found.items()} == {"1.jpg": "cats/1.jpg"}
    with pytest.raises(UserError, match="line 2: there is no image 'dogs/1.jpg'"):
        match_rows(rows, images)
    with pytest.raises(UserError, match="line 3: the image 'birds/1.jpg' has a row already"):
        match_rows(table(tmp_path, "dogs/1.jpg", "birds/1.jpg"), images)


def test_what_could_be_two_images_is_asked_for(tmp_path):
    save_images(tmp_path / "images", "cats/c.jpg", "dogs/c.jpg")
    (tmp_path / "labels.csv").write_text("image,labels\nc.jpg,cat\n")
    assert ("line 2: the image 'c.jpg' could be cats/c or dogs/c: name it with its folder"
            in refusal(tmp_path, labels="labels.csv"))
    (tmp_path / "labels.csv").write_text(
        "image,labels\nD:\\set\\images\\cats\\c.jpg,cat\nD:\\set\\images\\dogs\\c.jpg,dog\n")
    assert labels_of(tmp_path, labels="labels.csv") == {"cats/c": {"cat"}, "dogs/c": {"dog"}}
