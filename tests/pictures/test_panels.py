"""Panels: there, of the right size, showing what they should."""

import numpy as np
import pytest
import torch
from PIL import Image

from cosa.pictures.palette import voc_palette
from cosa.pictures.panels import (
    MAX_HEIGHT,
    MAX_WIDTH,
    MIN_HEIGHT,
    save_panel,
    save_prediction_panel,
    shown_size,
)
from cosa.predict import Prediction

CLASSES = ("cat", "sofa")
PALETTE = voc_palette(3)


def parts(height=64, width=48, **changes):
    """Arguments of a panel: a cat in the left half of a grey image."""
    cam = np.zeros((2, height, width), np.float32)
    cam[0, :, : width // 2] = 1
    labels = (cam[0] > 0).astype(np.int64)
    return {
        "image": Image.new("RGB", (width, height), (90, 90, 90)),
        "cam": cam,
        "cam_labels": labels,
        "uncertain": np.zeros((height, width), bool),
        "prediction": labels,
        "truth": labels.astype(np.uint8),
        "classes": CLASSES,
        "palette": PALETTE,
    } | changes


def draw(tmp_path, **arguments):
    path = tmp_path / "panel.png"
    save_panel(path, **arguments)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.mark.parametrize(
    "height, shown", [(64, 192), (100, 200), (250, 250), (1000, MAX_HEIGHT), (1, MIN_HEIGHT)]
)
def test_height_is_fit_for_people(tmp_path, height, shown):
    panel = draw(tmp_path, **parts(height, width=height))
    assert shown < panel.shape[0] < shown + 80
    assert 5 * shown < panel.shape[1] < 5 * shown + 80


def test_without_truth_the_column_is_left_out(tmp_path):
    with_truth, without = draw(tmp_path, **parts()), draw(tmp_path, **parts(truth=None))
    # One column of 48 pixels, three times enlarged, and a gap
    assert with_truth.shape[1] - without.shape[1] == 3 * 48 + 8


def test_columns_show_their_maps(tmp_path):
    arguments = parts(prediction=np.full((64, 48), 2))
    panel = draw(tmp_path, **arguments)
    columns = [panel[24 : 24 + 192, 8 + k * 152 : 8 + k * 152 + 144] for k in range(5)]
    image, cam, label, prediction, truth = columns
    assert (image == 90).all()
    assert cam[:, :60].mean() > cam[:, 84:].mean() + 100
    cat, sofa = np.array(PALETTE[1]), np.array(PALETTE[2])
    for column in (label, truth):
        assert abs(column[100, 20] - cat).sum() < abs(column[100, 20] - sofa).sum()
        assert np.ptp(column[100, 120]) == 0, "background is grey"
    assert abs(prediction[100, 20] - sofa).sum() < abs(prediction[100, 20] - cat).sum()
    assert (label == truth).all()


def test_uncertain_pixels_are_hatched(tmp_path):
    uncertain = np.zeros((64, 48), bool)
    uncertain[:, :12] = True
    plain, hatched = draw(tmp_path, **parts()), draw(tmp_path, **parts(uncertain=uncertain))
    changed = (plain != hatched).any(axis=-1)
    assert changed[24:216, 312 : 312 + 36].all()
    assert changed.sum() == 192 * 36
    assert hatched[100, 312 : 312 + 36].sum(axis=-1).std() > 50, "stripes"


def test_ignored_truth_differs_from_background(tmp_path):
    truth = np.zeros((64, 48), np.uint8)
    plain = draw(tmp_path, **parts(truth=truth))
    truth[:10] = 255
    changed = (draw(tmp_path, **parts(truth=truth)) != plain).any(axis=-1)
    assert changed[24:54, 8 + 4 * 152 : 8 + 4 * 152 + 144].all()


def test_legend_names_classes_that_are_shown(tmp_path):
    def colored(panel, color):
        legend = panel[24 + 192 :]
        return (legend == np.array(color)).all(axis=-1).sum() >= 100

    panel = draw(tmp_path, **parts())
    assert colored(panel, PALETTE[1]) and not colored(panel, PALETTE[2])
    ignored = voc_palette(256)[255]
    truth = np.full((64, 48), 255, np.uint8)
    assert colored(draw(tmp_path, **parts(truth=truth)), ignored) and not colored(panel, ignored)
    panel = draw(tmp_path, **parts(prediction=np.full((64, 48), 2)))
    assert colored(panel, PALETTE[1]) and colored(panel, PALETTE[2])


def test_many_classes_take_several_rows(tmp_path):
    names = [f"a rather long class name {k}" for k in range(30)]
    prediction = np.arange(64 * 48).reshape(64, 48) % 31
    one = draw(tmp_path, **parts())
    many = draw(
        tmp_path,
        **parts(prediction=prediction, classes=names, palette=voc_palette(31)),
    )
    assert many.shape[0] > one.shape[0] + 100 and many.shape[1] == one.shape[1]


def test_class_names_are_text(tmp_path):
    def legend(name):
        return draw(tmp_path, **parts(classes=[name, *CLASSES[1:]]))

    assert (legend("a\nb\u202e\udcff") == legend(r"a\nb\u202e\udcff")).all()
    assert (legend("x" * 1000) == legend(f"{'x' * 36} [...] {'x' * 37}")).all()


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    save_panel(tmp_path / "a" / "b.c.png", **parts())
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.c.png"]


@pytest.mark.parametrize("name", ["cam", "cam_labels", "uncertain", "prediction", "truth"])
def test_maps_of_another_size_are_refused(tmp_path, name):
    arguments = parts()
    arguments[name] = arguments[name][..., :-1, :]
    with pytest.raises(ValueError, match=name):
        save_panel(tmp_path / "panel.png", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (1, 1), (2, 5000), (5000, 2), (3000, 50)])
def test_lines_of_pixels_become_no_huge_pictures(tmp_path, size):
    width, height = shown_size(size)
    assert shown_size((width, height)) == (width, height)
    assert 1 <= width <= MAX_WIDTH and 1 <= height <= MAX_HEIGHT
    prediction = Prediction(*(torch.rand(1, k, 8, 8) for k in (2, 2, 3)), torch.zeros(1, 2))
    image, truth = Image.new("RGB", size), np.zeros(size[::-1], np.uint8)
    save_prediction_panel(
        tmp_path / "panel.png", image=image, truth=truth, prediction=prediction,
        image_labels=torch.ones(2), threshold=0.5, perplexity_alpha=0.8, perplexity_beta=1,
        epsilon=1, classes=CLASSES, palette=PALETTE,
    )
    with Image.open(tmp_path / "panel.png") as panel:
        assert panel.width == 5 * (width + 8) + 8 and panel.height >= height
