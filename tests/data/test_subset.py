import dataclasses

import numpy as np
import pytest
from PIL import Image

from cosa.config import DataConfig, load_config
from cosa.core.errors import UserError
from cosa.data import build_dataset
from cosa.data.base import FileDataset
from cosa.data.masks import MaskFiles
from cosa.data.subset import Subset, halves, with_masks
from cosa.training.evaluation import scored_split


@pytest.fixture
def whole(tmp_path):
    """Five images, out of order, of grey value 10 k; all but the third have a mask of value 1."""
    names = ["d", "b", "e", "a", "c"]
    for number, name in enumerate(names):
        Image.new("RGB", (6, 4), (10 * number,) * 3).save(tmp_path / f"{name}.png")
        Image.fromarray(np.full((4, 6), 1, np.uint8)).save(tmp_path / f"{name}.mask.png")
    return FileDataset(
        ("cat", "dog"), names, np.arange(10).reshape(5, 2),
        [tmp_path / f"{name}.png" for name in names],
        MaskFiles({name: tmp_path / f"{name}.mask.png" for name in names if name != "e"}, "ab"),
    )


def test_a_subset_has_what_the_whole_has_at_its_places(whole):
    part = Subset(whole, [4, 2])
    assert len(part) == 2 and part.names == ["c", "e"]
    assert part.classes == whole.classes and part.palette == whole.palette
    np.testing.assert_array_equal(part.labels, [[8, 9], [4, 5]])
    assert part.image(0).getpixel((0, 0)) == (40, 40, 40)
    assert part.open_image(1).decode().image.getpixel((0, 0)) == (20, 20, 20)
    assert part.has_mask(0) and not part.has_mask(1) and part.has_masks
    np.testing.assert_array_equal(part.mask(0), np.ones((4, 6)))
    assert part.mask(1) is None
    assert not Subset(whole, [2]).has_masks


def test_halves_are_by_sorted_name_and_share_nothing(whole):
    first, second = halves(whole)
    assert first.names == ["a", "b", "c"] and second.names == ["d", "e"]
    assert first.image(0).getpixel((0, 0)) == (30, 30, 30)


def test_the_check_looks_at_what_is_left_out(whole):
    part = Subset(whole, [0])
    part.check()
    whole.image_paths[4].unlink()
    with pytest.raises(UserError, match="c.png"):
        part.check()
    with pytest.raises(UserError, match="no image"):
        Subset(whole, []).check()


def test_images_with_masks(whole):
    assert with_masks(whole).names == ["d", "b", "a", "c"]
    whole.masks.paths["e"] = whole.masks.paths["a"]
    assert with_masks(whole) is whole


@pytest.fixture
def photographs(tmp_path):
    """A ``data`` section: seven images to train on, of which five have masks."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for name in "gfedcba":
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{name}.png")
        if name not in "ag":
            Image.fromarray(np.ones((4, 6), np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    rows = "".join(f"{name},cat\n" for name in "gfedcba")
    (tmp_path / "labels.csv").write_text(f"image,labels\n{rows}")
    return DataConfig(name="folder", root=str(tmp_path), images="images", labels="labels.csv",
                      masks="masks", hold_out=True)


def test_held_out_images_are_the_second_half_of_the_validation_images(photographs):
    names = {split: build_dataset(photographs, split).names for split in ("train", "val", "test")}
    assert names == {"train": [*"abcdefg"], "val": ["b", "c", "d"], "test": ["e", "f"]}
    without = dataclasses.replace(photographs, hold_out=False)
    for split in ("val", "test"):
        assert build_dataset(without, split).names == [*"bcdef"]


def test_where_final_scores_come_from(photographs):
    options = [f"data.{key}={getattr(photographs, key)}" for key in ("name", "images", "labels")]
    assert scored_split(load_config(None, options)) == "val"
    assert scored_split(load_config(None, [*options, "data.hold_out=true"])) == "test"


def test_there_must_be_something_to_hold_out(photographs, tmp_path):
    for name in "bcde":
        (tmp_path / "masks" / f"{name}.png").unlink()
    for split in ("val", "test"):
        with pytest.raises(UserError, match="data.hold_out needs two or more .* here are 1"):
            build_dataset(photographs, split)
    with pytest.raises(UserError, match="data.hold_out is for voc, coco and folder"):
        load_config(None, ["data.name=scenes", "data.hold_out=true"])
