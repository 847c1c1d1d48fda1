import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from cosa.config import DataConfig, load_config
from cosa.core.errors import UserError
from cosa.data import build_dataset
from cosa.data.scenes import dataset as scenes
from cosa.data.scenes import drawing
from cosa.data.scenes.dataset import CLASSES, ScenesDataset, export, generate
from tests.helpers.tiny import ROOT


@pytest.fixture(scope="module")
def many():
    return ScenesDataset("train", seed=0, count=300, size=64)


def test_a_scene_is_a_pure_function_of_seed_split_and_index():
    image, mask = generate(3, "val", 5, 48)
    again, same_mask = generate(3, "val", 5, 48)
    assert image.dtype == mask.dtype == np.uint8
    assert image.shape == (48, 48, 3) and mask.shape == (48, 48)
    assert np.array_equal(image, again) and np.array_equal(mask, same_mask)
    for other in ((4, "val", 5, 48), (3, "test", 5, 48), (3, "val", 6, 48)):
        assert not np.array_equal(image, generate(*other)[0])


def test_the_number_of_images_does_not_change_them():
    few, more = ScenesDataset("train", 0, 2, 48), ScenesDataset("train", 0, 4, 48)
    for index in range(2):
        assert np.array_equal(few.image(index), more.image(index))
        assert np.array_equal(few.mask(index), more.mask(index))


def test_no_image_is_in_two_splits():
    found = [
        np.asarray(dataset.image(i)).tobytes()
        for split in scenes.SPLITS
        for dataset in [ScenesDataset(split, 0, 15, 40)]
        for i in range(15)
    ]
    assert len(set(found)) == 45


def test_the_data_set_describes_itself(many):
    assert len(many) == len(many.names) == len(set(many.names)) == 300
    assert many.classes == ("boat", "train", "bird", "cat", "sofa", "bottle", "lamp")
    with_context = tuple(c.name for c in CLASSES if c.context)
    assert load_config("configs/demo.yaml").evaluate.coexistence_classes == with_context
    assert len(many.palette) == len(set(many.palette)) == 8 and many.palette[0] == (0, 0, 0)
    assert many.has_masks and many.labels.shape == (300, 7) and many.labels.dtype == np.uint8
    image = many.image(0)
    assert image.mode == "RGB" and image.size == (64, 64)
    many.check()


def test_labels_are_the_classes_of_the_masks(many):
    for index in range(len(many)):
        in_mask = set(np.unique(many.mask(index)).tolist())
        assert in_mask <= set(range(8)), "classes and background, nothing to ignore"
        assert in_mask - {0} == set((np.flatnonzero(many.labels[index]) + 1).tolist())


def test_labels_per_image_and_background_share(many):
    per_image = many.labels.sum(axis=1)
    assert per_image.min() >= 1 and per_image.max() <= 3
    assert 1.45 < per_image.mean() < 1.85
    background = np.mean([(many.mask(i) == 0).mean() for i in range(len(many))])
    assert 0.60 < background < 0.85
    assert many.labels.sum(axis=0).min() > 300 * 0.1, "every class is common"


def test_companions_share_images_more_often_than_others(many):
    names = many.classes
    cat, sofa, lamp = (many.labels[:, names.index(name)] for name in ("cat", "sofa", "lamp"))
    assert sofa[cat == 1].mean() > 2 * lamp[cat == 1].mean()


def test_contexts_accompany_their_class(monkeypatch):
    """Water with boats, rails with trains, branches with birds, and seldom without."""
    drawn = []
    original = drawing.context

    def spy(canvas, rng, kind, centre):
        drawn.append(kind)
        return original(canvas, rng, kind, centre)

    monkeypatch.setattr(drawing, "context", spy)
    seen = {kind: {True: [], False: []} for kind in ("water", "rails", "branches")}
    for index in range(250):
        drawn.clear()
        _, mask = generate(1, "train", index, 32)
        for k, style in enumerate(CLASSES, start=1):
            if style.context:
                seen[style.context][bool((mask == k).any())].append(style.context in drawn)
    for kind, cases in seen.items():
        assert np.mean(cases[True]) > 0.6, kind
        assert np.mean(cases[False]) < 0.25, kind


def test_context_is_background(monkeypatch):
    """What is drawn as a context leaves the mask alone."""
    masks = [generate(2, "train", index, 32)[1] for index in range(20)]
    images = [generate(2, "train", index, 32)[0] for index in range(20)]
    original = drawing.context

    def invisible(canvas, rng, kind, centre):
        original(canvas.copy(), rng, kind, centre)

    monkeypatch.setattr(drawing, "context", invisible)
    without = [generate(2, "train", index, 32) for index in range(20)]
    assert all(np.array_equal(a, b) for a, (_, b) in zip(masks, without, strict=True))
    assert any(not np.array_equal(a, b) for a, (b, _) in zip(images, without, strict=True))


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="no split 'trian': use one of train, val, test"):
        ScenesDataset("trian")


def test_the_configuration_builds_each_split():
    data = DataConfig(name="scenes", scenes_seed=4, scenes_train=3, scenes_val=2, scenes_test=1,
                      scenes_size=32)
    sizes = {split: len(build_dataset(data, split)) for split in scenes.SPLITS}
    assert sizes == {"train": 3, "val": 2, "test": 1}
    drawn = np.asarray(build_dataset(data, "val").image(1))
    assert np.array_equal(drawn, generate(4, "val", 1, 32)[0])


def test_an_exported_data_set_is_a_folder_data_set(tmp_path):
    dataset = ScenesDataset("test", 0, 6, 40)
    export(dataset, tmp_path)
    read = build_dataset(
        DataConfig(name="folder", root=str(tmp_path), images="images", labels="labels.csv",
                   masks="masks", classes="classes.txt"),
        "val",
    )
    read.check()
    assert read.classes == dataset.classes
    assert read.names == dataset.names and np.array_equal(read.labels, dataset.labels)
    for index in range(6):
        assert np.array_equal(read.image(index), dataset.image(index))
        assert np.array_equal(read.mask(index), dataset.mask(index))


def test_scenes_are_written_from_the_command_line(tmp_path):
    command = [sys.executable, "-W", "error", "-m", "cosa.data.scenes", str(tmp_path / "out"),
               "--count", "3", "--size", "40", "--split", "val"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "3 scenes written" in done.stdout
    images = sorted((tmp_path / "out" / "images").iterdir())
    assert [path.name for path in images] == [f"val_{i:05d}.png" for i in range(3)]
    assert np.array_equal(Image.open(images[2]), generate(0, "val", 2, 40)[0])


def test_drawing_is_fast():
    started = time.process_time()
    ScenesDataset("train", 0, 100, 96)
    assert time.process_time() - started < 8
