"""Masks of every form, each made by the test: what is read, and what is refused in a sentence."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cosa.config import from_dict
from cosa.core.errors import UserError
from cosa.data import build_dataset
from cosa.data.check import examine
from cosa.data.masks import CocoMasks, MaskFiles, open_masks, read_mask
from cosa.data.masks.colors import ColorMap
from cosa.data.masks.find import Matching
from cosa.data.masks.outlines import area, region, run_lengths
from tests.helpers.folder_data import SIDE, blob, write_folder
from tests.helpers.image_files import chunk

CLASSES = ("cat", "dog")
CAT, DOG = (128, 0, 0), (0, 128, 0)
INDEX = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)
COLORS = np.array([(0, 0, 0), CAT, DOG], np.uint8)


def colored(index, border=(224, 224, 192)):
    """RGB of a mask of 0, 1, 2 and 255."""
    palette = np.concatenate([COLORS, np.full((252, 3), 7), [border]])
    return palette[index].astype(np.uint8)


def saved(path, values, mode=None, **options):
    Image.fromarray(np.asarray(values), mode).save(path, **options)
    return path


def fails(message, action):
    with pytest.raises(UserError, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


@pytest.fixture
def colors(tmp_path):
    return color_map(tmp_path, "cat,128,0,0\ndog,0,128,0\n")


def color_map(folder, text, name="colors.csv", **options):
    (folder / name).write_text(text, encoding="utf-8")
    return ColorMap(folder / name, options.pop("classes", CLASSES), **options)


def palette_picture(index, palette):
    picture = Image.fromarray(index).convert("P")
    picture.putdata(index.ravel().tolist())
    picture.putpalette([*np.asarray(palette, np.uint8).ravel().tolist()])
    return picture


# Pictures of indices


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "pgm"])
def test_indices_in_formats_that_keep_them(tmp_path, suffix):
    saved(tmp_path / f"m.{suffix}", INDEX)
    np.testing.assert_array_equal(read_mask(tmp_path / f"m.{suffix}", 2), INDEX)


def test_indices_in_other_modes(tmp_path):
    saved(tmp_path / "16.png", INDEX.astype(np.uint16))
    saved(tmp_path / "32.tif", INDEX.astype(np.int32))
    saved(tmp_path / "rgb.png", np.stack([INDEX] * 3, -1))
    for name in ("16.png", "32.tif", "rgb.png"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, 2), INDEX)
    Image.fromarray(INDEX == 1).save(tmp_path / "1.png")
    assert Image.open(tmp_path / "1.png").mode == "1"
    np.testing.assert_array_equal(read_mask(tmp_path / "1.png", 2), INDEX == 1)


@pytest.mark.parametrize("bands", ["LA", "RGBA"])
def test_what_is_fully_transparent_is_background(tmp_path, bands):
    index = np.array([[1, 2, 2, 77]], np.uint8)
    alpha = np.array([[255, 1, 0, 0]], np.uint8)
    values = [index] * (len(bands) - 1)
    path = saved(tmp_path / "m.png", np.stack([*values, alpha], -1), bands)
    np.testing.assert_array_equal(read_mask(path, 2), [[1, 2, 0, 0]])
    path = saved(tmp_path / "m.png", np.stack([*values, alpha | 255], -1)[:, :3], bands)
    np.testing.assert_array_equal(read_mask(path, 2), [[1, 2, 2]])
    path = saved(tmp_path / "m.png", np.stack([*values, alpha & 0], -1), bands)
    np.testing.assert_array_equal(read_mask(path, 2), [[0, 0, 0, 0]])
    alpha[0, 3] = 9
    path = saved(tmp_path / "m.png", np.stack([*values, alpha], -1), bands)
    fails("m.png: the mask holds the value 77", lambda: read_mask(path, 2))


def test_one_visible_pixel_in_a_color(tmp_path, colors):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, 1] = (*DOG, 255)
    path = saved(tmp_path / "m.png", pixels)
    np.testing.assert_array_equal(read_mask(path, 2, colors), [[0, 2, 0]])


@pytest.mark.parametrize("kind, bands", [(2, 3), (4, 2), (6, 4)])
def test_channels_of_16_bits_are_not_cut(tmp_path, kind, bands):
    """Pillow would read 1 as 0."""
    rows = b"\0" + b"\0\1" * bands * 2
    head = struct.pack(">LLBBBBB", 2, 1, 16, kind, 0, 0, 0)
    (tmp_path / "m.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
                                     + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    fails("m.png has several channels of 16 bits", lambda: read_mask(tmp_path / "m.png", 2))


def test_formats_that_blend_values_are_refused(tmp_path):
    saved(tmp_path / "a.jpg", INDEX)
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    saved(tmp_path / "b.tif", INDEX, compression="jpeg")
    for name in ("a.png", "b.tif"):
        fails(f"{name} is compressed as JPEG, which blends", lambda: read_mask(tmp_path / name, 2))  # noqa: B023
    saved(tmp_path / "c.tif", np.full((2, 2), 0.5, np.float32))
    fails("c.tif: .* this is a colour picture or one of fractions",
          lambda: read_mask(tmp_path / "c.tif", 2))


# Pictures of colours


def test_colors_need_a_map(tmp_path, colors):
    path = saved(tmp_path / "m.png", colored(INDEX))
    fails("m.png: .* colour picture .*; give the map of its colours, data.colors or --colors",
          lambda: read_mask(path, 2))
    np.testing.assert_array_equal(read_mask(path, 2, colors), INDEX)


MAPS = {
    "name.json": '{"cat": [128, 0, 0], "dog": "#008000"}',
    "hex.json": '{"#800000": "cat", "#008000": "dog"}',
    "header.csv": "name,r,g,b\ncat,128,0,0\ndog, 0, 128, 0\n",
    "plain.csv": '"cat",128,0,0\r\n"dog",0,128,0\r\n',
    "semicolon.csv": "name;r;g;b\ncat;128;0;0\ndog;0;128;0\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n"
                    "dog:0,128,0:head,tail:sits\n",
    "label_colors.txt": "128 0 0\t\tcat\n0 128 0\t\tdog\n",
    "case.csv": "Cat,128,0,0\nDOG,0,128,0\n",
}


@pytest.mark.parametrize("name", MAPS)
def test_forms_of_maps(tmp_path, name):
    path = saved(tmp_path / "m.png", colored(INDEX))
    np.testing.assert_array_equal(
        read_mask(path, 2, color_map(tmp_path, MAPS[name], name)), INDEX)


@pytest.mark.parametrize("text, message", [
    ("cat,128,0,0\ndog,0,128\n", "colors.csv, line 2: 'dog,0,128' is no colour of a class; write"),
    ("cat,128,0,256\n", "line 1: the colour .128, 0, 256. is none, of numbers in 0..255"),
    ("cat,128,0,0\ndog,128,0,0\n", "line 2: the colour .128, 0, 0. is in the map twice"),
    ("cat,128,0,0\ntree,128,0,0\n", "line 2: the colour .128, 0, 0. is in the map twice"),
    ("tree,128,0,0\ncat,128,0,0\n", "line 2: the colour .128, 0, 0. is in the map twice"),
    ("catt,128,0,0\n", "no name in this colour map is a class, such as 'cat'; did you mean 'catt'"),
    ("", "no name in this colour map is a class"),
    ('{"cat": [128, 0]}', "'cat' has no colour such as"),
    ('{"cat": "red"}', "'cat' has no colour such as"),
    ('{"cat": [128, 0, 300]}', "is none, of numbers in 0..255"),
    ('{"cat": {"r": 1}}', "cat must be a list or of type str"),
    ('{"cat": ', "is no JSON"),
])
def test_maps_that_are_none(tmp_path, text, message):
    fails(message, lambda: color_map(tmp_path, text))
    fails("colors.csv", lambda: color_map(tmp_path, text))


def test_a_map_may_not_be_there(tmp_path):
    fails("none.csv: no such file; set data.colors",
          lambda: ColorMap(tmp_path / "none.csv", CLASSES))


def test_colors_that_the_map_does_not_hold(tmp_path, colors):
    path = saved(tmp_path / "m.png", np.array([[CAT, (1, 2, 3), (1, 2, 3), (9, 9, 9)]], np.uint8))
    fails(r"m.png: the colour \(1, 2, 3\) \(#010203\) is not in the colour map .*colors.csv, as "
          "are 1 more colours of it: add it with its class", lambda: read_mask(path, 2, colors))
    tree = color_map(tmp_path, "cat,128,0,0\ntree,1,2,3\nrest,9,9,9\n")
    fails(r"\(1, 2, 3\) .* means 'tree' by .*colors.csv, which is no class: add the class",
          lambda: read_mask(path, 2, tree))


def test_the_map_may_name_background_and_what_is_ignored(tmp_path):
    pixels = np.array([[CAT, (0, 0, 0), (1, 2, 3), (224, 224, 192)]], np.uint8)
    path = saved(tmp_path / "m.png", pixels)
    told = color_map(tmp_path, "cat,128,0,0\n_background_,1,2,3\nVoid,0,0,0\n")
    fails("224, 224, 192", lambda: read_mask(path, 2, told))
    told = color_map(tmp_path, "cat,128,0,0\nbackground,1,2,3\nvoid,0,0,0\nignored,224,224,192\n")
    np.testing.assert_array_equal(read_mask(path, 2, told), [[1, 255, 0, 255]])
    other = color_map(tmp_path, "cat,128,0,0\nbackground,1,2,3\n")
    fails(r"\(0, 0, 0\)", lambda: read_mask(path, 2, other))
    void = color_map(tmp_path, "cat,128,0,0\nvoid,1,2,3\n", classes=("void", "cat"))
    np.testing.assert_array_equal(read_mask(saved(path, pixels[:, :3]), 2, void), [[2, 0, 1]])


def test_palettes_are_read_by_color_where_there_is_a_map(tmp_path, colors):
    """Another program's indices: 3 is a cat, 1 a dog, and the palette says so."""
    index = np.array([[0, 3, 1, 4]], np.uint8)
    palette = [(0, 0, 0), DOG, (9, 9, 9), CAT, (224, 224, 192)]
    palette_picture(index, palette).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", 2, colors), [[0, 1, 2, 255]])
    fails("the mask holds the value 3", lambda: read_mask(tmp_path / "m.png", 2))
    void = color_map(tmp_path, "cat,128,0,0\nvoid,0,0,0\n")
    for shown in (palette, palette[:1]):
        palette_picture(np.zeros((1, 2), np.uint8), shown).save(tmp_path / "v.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "v.png", 2, void), [[255, 255]])
    palette[4] = (5, 6, 7)
    palette_picture(index, palette).save(tmp_path / "m.png")
    fails("the colour .5, 6, 7.", lambda: read_mask(tmp_path / "m.png", 2, colors))


def test_grey_masks_hold_indices_unless_a_class_is_grey(tmp_path, colors):
    path = saved(tmp_path / "m.png", INDEX)
    np.testing.assert_array_equal(read_mask(path, 2, colors), INDEX)
    ramp = np.repeat(np.arange(256)[:, None], 3, axis=1)
    palette_picture(INDEX, ramp).save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "p.png", 2, colors), INDEX)
    white = color_map(tmp_path, "cat,255,255,255\ndog,100,100,100\n")
    grey = np.array([[0, 255, 100]], np.uint8)
    for name, picture in (("l", Image.fromarray(grey)), ("p", palette_picture(grey, ramp)),
                          ("rgb", Image.fromarray(np.stack([grey] * 3, -1)))):
        picture.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_mask(tmp_path / f"{name}.png", 2, white), [[0, 1, 2]])
    fails("the colour .1, 1, 1.", lambda: read_mask(path, 2, white))
    Image.fromarray(INDEX == 1).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "1.png", 2, white), INDEX == 1)


def test_many_pixels_are_looked_up_in_parts(tmp_path, colors, monkeypatch):
    monkeypatch.setattr("cosa.data.masks.colors.PIXELS", 5)
    index = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (7, 9))
    path = saved(tmp_path / "m.png", colored(index))
    np.testing.assert_array_equal(read_mask(path, 2, colors), index)


# A map that is found


def masked_folder(root, masks="masks", names=("a", "b")):
    """Images and coloured masks of 6x4 pixels; the section ``data``."""
    (root / "images").mkdir(parents=True)
    (root / masks).mkdir(parents=True)
    index = np.zeros((4, 6), np.uint8)
    for number, name in enumerate(names):
        Image.new("RGB", (6, 4), (200, 100, number)).save(root / f"images/{name}.jpg")
        index[0, number] = 1 + number % 2
        saved(root / masks / f"{name}.png", colored(index))
    (root / "labels.csv").write_text("image,labels\n" + "".join(
        f"{name},{CLASSES[number % 2]}\n" for number, name in enumerate(names)))
    return {"name": "folder", "root": str(root), "images": "images", "labels": "labels.csv",
            "masks": masks}


def dataset(data, split="val"):
    return build_dataset(from_dict({"data": data}).data, split)


@pytest.mark.parametrize("place", ["masks/labelmap.txt", "labelmap.txt"])
def test_a_labelmap_beside_or_above_the_masks_is_found(tmp_path, capsys, place):
    data = masked_folder(tmp_path)
    fails("a.png: .* colour picture", dataset(data).check)
    (tmp_path / place).write_text(MAPS["labelmap.txt"])
    capsys.readouterr()
    found = dataset(data)
    assert "sorted order" not in capsys.readouterr().err, "names need no order"
    found.check()
    np.testing.assert_array_equal(found.mask(0)[0], [1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.mask(1)[0], [1, 2, 0, 0, 0, 0])
    note = f"note: the colours of the masks are those of {tmp_path / place}\n"
    assert capsys.readouterr().err == note


def test_a_class_without_a_color_is_told(tmp_path, capsys):
    data = masked_folder(tmp_path, names=["a"])
    (tmp_path / "labels.csv").write_text("image,labels\na,cat;cow\n")
    (tmp_path / "colors.csv").write_text("cat,128,0,0\n")
    found = dataset(data | {"colors": "colors.csv"})
    assert "sorted order" not in capsys.readouterr().err, "names need no order"
    found.check()
    assert f"note: {tmp_path}/colors.csv has no colour for 1 of 2 classes, such as 'cow'" in (
        capsys.readouterr().err)


def test_a_plain_list_of_that_name_is_left_aside(tmp_path, capsys):
    data = write_folder(tmp_path / "own", {"a": ("cat", blob(1)), "b": ("dog", blob(2))})
    (tmp_path / "own/labelmap.txt").write_text("???\ncat\ndog\n")
    dataset(data).check()
    assert capsys.readouterr().err.count("labelmap.txt holds no colours (name:r,g,b::)") == 1


def test_maps_are_not_read_in_training(tmp_path):
    data = masked_folder(tmp_path) | {"colors": "none.csv"}
    dataset(data, "train").check()
    fails("none.csv: no such file", dataset(data).check)


def test_labels_come_from_colors_too(tmp_path):
    data = masked_folder(tmp_path)
    (tmp_path / "labelmap.txt").write_text(MAPS["labelmap.txt"])
    data |= {"val_images": "images", "val_masks": "masks"}
    np.testing.assert_array_equal(dataset(data).labels, [[1, 0], [1, 1]])


# Which file belongs to an image


def test_masks_of_other_suffixes_and_names(tmp_path, capsys):
    for name in ("a.tif", "b.jpg.png", "c.bmp", "c.png", "d.jpg", "e.webp", "x.png"):
        saved(tmp_path / name, INDEX)
    written = {key: name for name in "abcde" for key in (name, f"{name}.jpg")}
    found = open_masks(tmp_path, written, CLASSES)
    assert [found.path(name) and found.path(name).name for name in "abcde"] == [
        "a.tif", "b.jpg.png", "c.png", None, None]
    assert "2 images have no mask" in capsys.readouterr().err
    found = open_masks(tmp_path, written, CLASSES, images=[tmp_path / "d.jpg", tmp_path / "e.webp"])
    assert capsys.readouterr().err == "" and not found.has("d")
    fails("no mask here belongs to an image; .*d.jpg is of a format that blends",
          lambda: open_masks(tmp_path, {"d": "d"}, CLASSES))
    fails("for example z.png", lambda: open_masks(tmp_path, {"z": "z"}, CLASSES))


# Sizes


@pytest.mark.parametrize("stored, fits", [
    ((200, 100), True), ((202, 99), True), ((198, 101), True), ((203, 100), False),
    ((200, 98), False), ((100, 200), False),
])
def test_masks_off_by_a_percent_are_resized(tmp_path, capsys, stored, fits):
    data = masked_folder(tmp_path)
    for name in "ab":
        Image.new("RGB", (200, 100), (9, 8, 7)).save(tmp_path / f"images/{name}.jpg")
        values = np.arange(stored[0] * stored[1], dtype=np.uint32).reshape(stored[::-1]) % 3
        saved(tmp_path / f"masks/{name}.png", values.astype(np.uint8))
    found = dataset(data)
    if not fits:
        fails(rf"a.png: the mask is {stored[0]}x{stored[1]} pixels but .*a.jpg is 200x100; they "
              r"must have one size \(1 more file has problems", found.check)
        fails("they must have one size", lambda: found.mask_size(0))
        fails("they must have one size", lambda: found.mask(0))
        return
    capsys.readouterr()
    found.check()
    assert found.mask_size(0) == found.image_size(0) == found.mask(0).shape[::-1] == (200, 100)
    assert set(np.unique(found.mask(1))) == {0, 1, 2}
    err = capsys.readouterr().err
    told = 0 if stored == (200, 100) else 1
    assert err.count("note: ") == err.count("are resized, each pixel taking") == told


def test_the_nearest_value_is_taken(tmp_path):
    """Of 101 columns for 100, the middle of each of the 100 falls into: one of them is left out."""
    mask = np.zeros((100, 101), np.uint8)
    mask[:, 51:] = 2
    saved(tmp_path / "m.png", mask)
    read = MaskFiles({"m": tmp_path / "m.png"}, CLASSES).read("m", (100, 100))
    assert read.dtype == np.uint8 and read.shape == (100, 100)
    places = ((np.arange(100) + 0.5) * 1.01).astype(int)
    np.testing.assert_array_equal(read, mask[:, places])


# COCO's annotations


def square(x, y, side):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def annotations(path, items, categories=((5, "dog"), (90, "cat")), images=("a.jpg",), size=(6, 4)):
    """A file with ids that have gaps, without what labels and outlines do not need."""
    sized = {"width": size[0], "height": size[1]} if size else {}
    path.write_text(json.dumps({
        "images": [{"id": 10 + 7 * n, "file_name": name, **sized} for n, name in enumerate(images)],
        "categories": [{"id": key, "name": name} for key, name in categories],
        "annotations": [{"image_id": 10, "category_id": 90, **item} for item in items],
    }))
    return path


def drawn(path, size=None):
    return CocoMasks(path, CLASSES, Matching({"a": "a", "a.jpg": "a"})).read("a", size)


def test_annotations_of_ones_own_categories(tmp_path):
    path = annotations(tmp_path / "a.json", [
        {"segmentation": square(0, 0, 4)},
        {"category_id": 5, "segmentation": square(1, 1, 1)},
        {"category_id": 5, "segmentation": {"counts": [20, 4], "size": [4, 6]}},
    ])
    expected = np.zeros((4, 6), np.uint8)
    expected[:, :4] = 1
    expected[1, 1] = 2  # smaller, so on top
    expected[:, 5] = 2
    np.testing.assert_array_equal(drawn(path), expected)


def test_areas_order_what_overlaps():
    assert area(square(0, 0, 4) + square(9, 9, 1)) == 17
    assert area([[0, 0, 4, 0, 0, 4]]) == 8 and area([]) == area([[1, 1, 3, 3]]) == 0
    assert area({"counts": [1, 2, 3, 4]}) == 6 == area({"counts": "1232"})


def test_boxes_and_crowds_are_not_counted(tmp_path):
    path = annotations(tmp_path / "a.json", [
        {"bbox": [0, 0, 2, 4], "segmentation": []},
        {"bbox": [0, 0, 1, 1], "segmentation": square(0, 0, 1), "category_id": 5},
        {"bbox": [3, 0, 1, 4]}, {"bbox": [4, 0, 1, 4], "segmentation": None},
        {"iscrowd": 1, "segmentation": {"counts": [20, 4]}},
        {"category_id": 5},
    ])
    expected = np.zeros((4, 6), np.uint8)
    expected[:, [0, 1, 3, 4, 5]] = 255
    expected[0, 0] = 2
    np.testing.assert_array_equal(drawn(path), expected)


def test_sizes_may_be_those_of_the_images(tmp_path):
    path = annotations(tmp_path / "a.json", [{"segmentation": square(0, 0, 4)}], size=None)
    assert drawn(path, (6, 4)).sum() == 16
    fails("a.json, image a: it has no width and height", lambda: drawn(path))
    masks = CocoMasks(path, CLASSES, Matching({"a.jpg": "a"}))
    assert masks.size("a", (6, 4)) == (6, 4)
    masks.check("a", (6, 4))


@pytest.mark.parametrize("item, message", [
    ({"category_id": 7}, "annotation 0 has the category_id 7, which the file does not list"),
    ({"image_id": 7, "id": 3}, "annotation 3 has the image_id 7, which the file does not list"),
    ({"category_id": 6}, "annotation 0 is of 'tree', which is no class; add it to the classes"),
    ({"segmentation": [[1, 2, 3]]}, "annotation 0: "),
    ({"segmentation": {"counts": "1"}}, "annotation 0: run lengths cover 1 of 24 pixels"),
    ({"segmentation": {"counts": "P"}}, "annotation 0: the run lengths are no compressed text"),
])
def test_annotations_that_do_not_fit(tmp_path, item, message):
    path = annotations(tmp_path / "a.json", [item], ((6, "tree"), (90, "cat")))
    fails(f"a.json: {message}", lambda: drawn(path))


def test_categories_that_nothing_has_need_be_no_class(tmp_path):
    path = annotations(tmp_path / "a.json", [{"segmentation": square(0, 0, 1)}],
                       ((0, "animals"), (90, "Cat")))
    assert drawn(path).sum() == 1


@pytest.mark.parametrize("written", ["a.jpg", "images/a.jpg", "A.JPG", "train\\a.jpg", "./a", "a"])
def test_images_are_found_by_what_the_file_calls_them(written):
    assert Matching({"a": "a", "a.jpg": "a", "sub/b.jpg": "sub/b"})(written) == "a"


def test_nested_names_go_before_shorter_ones():
    matching = Matching({"a.jpg": "a", "sub/a.jpg": "sub/a"})
    assert matching("sub/a.jpg") == "sub/a" and matching("other/a.jpg") == "a"
    assert matching("b.jpg") is None


def test_a_folder_with_annotations_in_place_of_masks(tmp_path, capsys):
    data = masked_folder(tmp_path, names="abc")
    (tmp_path / "labels.csv").write_text("image,labels\na,cat\nb,dog\nc,cat;dog\n")
    annotations(tmp_path / "m.json", [{"segmentation": square(0, 0, 2)},
                                      {"image_id": 17, "category_id": 5,
                                       "segmentation": square(0, 0, 1)}],
                images=("a.jpg", "photos/b.jpg", "x.jpg"))
    data["masks"] = "m.json"
    found = dataset(data)
    assert "sorted order" not in capsys.readouterr().err
    found.check()
    assert found.names == ["a", "b"] and found.classes == CLASSES
    assert (found.mask(0) == 1).sum() == 4 and (found.mask(1) == 2).sum() == 1
    assert found.mask_size(0) == (6, 4) and "m.json, image a" in found.mask_source(0)
    (part,) = [p for p in examine(dataset(data, "train"), found).parts if p.masks]
    assert part.masks.pixels == [43, 4, 1]
    labels = dataset(data | {"val_images": "images", "val_masks": "m.json"}).labels
    np.testing.assert_array_equal(labels, [[1, 0], [0, 1]])
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    other = dataset(data | {"classes": "classes.txt"})
    assert other.classes == ("dog", "cat") and (other.mask(0) == 2).sum() == 4


def test_annotations_of_other_images_and_missing_files(tmp_path):
    data = masked_folder(tmp_path) | {"masks": "m.json"}
    fails("m.json: no such file; set data.masks", lambda: dataset(data))
    annotations(tmp_path / "m.json", [], images=("y.jpg",))
    fails("m.json: none of its images is in the folder of images", lambda: dataset(data))
    annotations(tmp_path / "m.json", [], images=("a.jpg", "x/a.jpg"))
    fails("two images have one id or file_name", lambda: dataset(data))
    fails("m.json has no colours: leave out", lambda: dataset(data | {"colors": "c.csv"}))
    fails("data.colors is of use with masks only",
          lambda: dataset(data | {"colors": "c.csv", "masks": ""}))


def test_annotations_are_not_read_in_training(tmp_path):
    (tmp_path / "m.json").write_text("broken")
    data = masked_folder(tmp_path) | {"masks": "m.json"}
    training = dataset(data, "train")
    training.check()
    fails("m.json", lambda: training.mask(0))


def test_masks_drawn_for_a_size_off_by_a_percent(tmp_path):
    path = annotations(tmp_path / "a.json", [{"segmentation": square(0, 0, 50)}], size=(100, 200))
    assert drawn(path, (101, 199)).shape == (199, 101)
    fails("a.json, image a: the mask is 100x200 pixels but a is 103x200",
          lambda: drawn(path, (103, 200)))


# Run lengths as text


def test_run_lengths_of_a_hand():
    """'1' is 1; 'P1' is 16 + 1 * 32 - ..., each letter 5 bits, and a bit for 'more'."""
    assert run_lengths("123").tolist() == [1, 2, 3]
    assert run_lengths("1232").tolist() == [1, 2, 3, 4]  # the fourth is told less the second
    assert run_lengths("`0").tolist() == [16] and run_lengths("P1").tolist() == [32]
    assert run_lengths("123O").tolist() == [1, 2, 3, 1]  # -1, so 1
    np.testing.assert_array_equal(region({"counts": "123"}, (2, 3)), [[0, 0], [1, 0], [1, 0]])


@pytest.mark.parametrize("text", [
    "", "P", "1\x7f", "1é", "1 2", "PPPPPPPPPPPPPPPPPPPPP1", "oooooooooooooo1", "O", "123J", "\0",
    "~~~~~~~0",
])
def test_texts_that_are_no_run_lengths(text):
    with pytest.raises(ValueError, match="run lengths"):
        run_lengths(text)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_those_of_pycocotools(seed):
    coco = pytest.importorskip("pycocotools.mask")
    draw = np.random.default_rng(seed)
    height, width = draw.integers(1, 90, 2)
    inside = draw.random((height, width)) < draw.choice([0, 0.02, 0.5, 1])
    inside |= np.arange(width) < draw.integers(0, width + 1)
    encoded = coco.encode(np.asfortranarray(inside.astype(np.uint8)))
    text = encoded["counts"].decode()
    np.testing.assert_array_equal(region({"counts": text}, (width, height)), inside)
    assert area({"counts": text}) == coco.area(encoded)
    listed = run_lengths(text).tolist()
    assert coco.frPyObjects({"counts": listed, "size": [height, width]}, height, width) == encoded
    np.testing.assert_array_equal(region({"counts": listed}, (width, height)), inside)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("seed", range(5))
def test_polygons_are_those_of_pycocotools_but_for_their_borders(seed):
    coco = pytest.importorskip("pycocotools.mask")
    draw = np.random.default_rng(seed)
    angles = np.sort(draw.random(9)) * 2 * np.pi
    radii = draw.uniform(20, 45, 9)
    corners = np.stack([50 + radii * np.cos(angles), 50 + radii * np.sin(angles)], 1)
    polygon = [corners.ravel().tolist()]
    theirs = coco.decode(coco.frPyObjects(polygon, 100, 100))[..., 0].astype(bool)
    ours = region(polygon, (100, 100))
    assert (ours ^ theirs).sum() < 0.05 * theirs.sum()
    assert abs(area(polygon) - ours.sum()) < 0.03 * ours.sum()


def test_the_check_tells_of_objects_that_are_white(tmp_path):
    """0 and 255 with 255 meant as the object: refused by the check, read with a map."""
    masks = {f"{k:02}": ("cat" if k % 2 else "dog", blob(255)) for k in range(12)}
    data = write_folder(tmp_path / "own", masks)
    report = examine(dataset(data, "train"), dataset(data))
    assert any("hold no value but 0 and 255" in finding.sentence for finding in report.findings)
    (tmp_path / "own/colors.csv").write_text("cat,255,255,255\n")
    found = dataset(data | {"colors": "colors.csv"})
    assert (found.mask(0) == 1).sum() == 400 and found.mask(0).shape == (SIDE, SIDE)
