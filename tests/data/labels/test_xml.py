"""VOC's XML with classes of one's own, and CVAT's."""

import pytest

from tests.helpers.labels import dataset_of, labels_of, refusal, save_images


def annotation(*names, filename="", part="<part><name>head</name></part>"):
    objects = "".join(f"<object><name>{name}</name>{part}</object>" for name in names)
    return f"<annotation><filename>{filename}</filename>{objects}</annotation>"


@pytest.fixture
def voc(tmp_path):
    save_images(tmp_path / "images", "a b.png", "IMG.2024.JPG", "IMG.jpg", "sub/c.jpeg", "old.jpg")
    for name, text in {
        "a b": annotation("hammer", " axe ", "axe"), "IMG.2024": annotation("axe"),
        "IMG": annotation(), "sub/c": annotation("saw"),
        "17": annotation("saw", filename="old.jpg"),
    }.items():
        path = tmp_path / f"xml/{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


EXPECTED = {"a b": {"hammer", "axe"}, "IMG.2024": {"axe"}, "IMG": set(), "sub/c": {"saw"},
            "old": {"saw"}}


def test_voc(voc, capsys):
    assert labels_of(voc, labels="xml") == EXPECTED
    assert capsys.readouterr().err == f"note: {voc}/xml: 5 images, 3 classes, VOC XML\n"
    assert dataset_of(voc, labels="xml").classes == ("axe", "hammer", "saw")


def test_voc_beside_the_images(voc):
    (voc / "xml").rename(voc / "old")
    for path in (voc / "old").rglob("*.xml"):
        path.rename(voc / "images" / path.relative_to(voc / "old"))
    assert labels_of(voc) == EXPECTED


@pytest.mark.parametrize("text, message", [
    ("<annotation>", "IMG.xml: the annotation cannot be read (no element found"),
    ("<annotations/>", "begins with <annotations> where <annotation> belongs"),
    ('<!DOCTYPE a [<!ENTITY x "x"><!ENTITY y "&x;&x;">]><annotation/>', "declares a document type"),
    (annotation("background"), "remove 'background'"),
])
def test_voc_mistakes(voc, text, message):
    (voc / "xml/IMG.xml").write_text(text)
    assert message in refusal(voc, labels="xml")


def cvat(labels=("cat", "dog", "bird"), inner=""):
    stated = "".join(f"<label><name>{name}</name></label>" for name in labels)
    stated += "<label><name>knee</name><parent>dog</parent></label>"
    return f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>4</id><labels>{stated}</labels></task></meta>
  <image id="0" name="sub/a.jpg" width="12" height="8">
    <box label="dog" source="manual" xtl="1" ytl="1" xbr="4" ybr="4">
      <attribute name="sleeps">true</attribute></box>
    <tag label="cat" source="manual"></tag>
  </image>
  <image id="1" name="b.png"><polygon label="dog" points="1,1;2,2;3,1"/></image>
  <image id="2" name="c.jpg"></image>
  {inner}
</annotations>"""


@pytest.fixture
def images(tmp_path):
    save_images(tmp_path / "images", "sub/a.jpg", "b.png", "c.jpg")
    return tmp_path


def test_cvat(images, capsys):
    (images / "annotations.xml").write_text(cvat())
    expected = {"sub/a": {"cat", "dog"}, "b": {"dog"}, "c": set()}
    assert labels_of(images, labels="annotations.xml") == expected
    assert "3 images, 3 classes, CVAT XML\n" in capsys.readouterr().err
    assert dataset_of(images, labels="annotations.xml").classes == ("cat", "dog", "bird")


@pytest.mark.parametrize("text, message", [
    (cvat(inner='<track label="cat"/>'), "export of a video: choose 'CVAT for images 1.1'"),
    (cvat(labels=["cat", "dag"]), "image 'sub/a.jpg': the label 'dog' is not among the classes"),
    (cvat(inner='<image name="c.jpg"/>'), "the image 'c.jpg' has a row already"),
    (cvat(inner="<image/>"), "image '': there is no image ''"),
    ("<annotations/>", "names no image"),
    ("<html/>", "holds no labels of a known format"),
])
def test_cvat_mistakes(images, text, message):
    (images / "annotations.xml").write_text(text)
    assert message in refusal(images, labels="annotations.xml")
