"""Examples of files are read, examples in Python run."""

import runpy

import numpy as np
import pytest
from PIL import Image

from cosa.checkpoint import build_network, save_weights
from cosa.config import load_config, to_dict
from cosa.data.labels import read_labels
from cosa.pictures.palette import voc_palette
from tests.helpers.pages import PAGES, README, page
from tests.helpers.tiny import ROOT

EXAMPLES = {"docs/annotators.md", "docs/code.md", "docs/crf.md", "docs/inference.md",
            "docs/pictures.md", "docs/review.md"}
"""Those of annotators.md are run by test_annotators.py, those of pictures.md by
tests/programs/test_depths.py."""


def run(name, folder, monkeypatch):
    """Run the one example of a page in a folder; return its names."""
    (text,) = page(name).blocks("python")
    script = folder / "example.py"
    script.write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    return runpy.run_path(str(script))


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")


def test_no_example_is_left_out():
    assert {one.name for one in PAGES if one.blocks("python")} == EXAMPLES


def test_labels_of_the_readme(tmp_path):
    (text,) = README.blocks("csv")
    path = tmp_path / "labels.csv"
    path.write_text(text)
    assert [(row.image, row.labels) for row in read_labels(path).rows] == [
        ("cats/a.jpg", ["cat", "sofa"]),
        ("b.png", ["dog"]),
    ]


@pytest.fixture
def demo(tmp_path, photo):
    """A network as the demo leaves it."""
    config = to_dict(load_config(ROOT / "configs/demo.yaml"))
    network = build_network(config, num_classes=2)
    (tmp_path / "runs/demo").mkdir(parents=True)
    save_weights(tmp_path / "runs/demo/best.pth", network, config=config,
                 classes=("cat", "sofa"), palette=voc_palette(3))


def test_inference(tmp_path, monkeypatch, demo):
    seen = run("docs/inference.md", tmp_path, monkeypatch)
    assert seen["mask"].shape == (96, 96)
    assert seen["cam"].shape == (2, 96, 96)


def test_review(tmp_path, monkeypatch, demo):
    assert 0 < run("docs/review.md", tmp_path, monkeypatch)["sure"] < 1


def test_crf(tmp_path, monkeypatch):
    halves = np.zeros((40, 60, 3), np.uint8)
    halves[:, 30:] = 255
    Image.fromarray(halves).save(tmp_path / "photo.jpg")
    probabilities = np.full((3, 40, 60), 0.2, np.float32)
    probabilities[1, :, :30] = probabilities[2, :, 30:] = 0.6
    np.save(tmp_path / "probabilities.npy", probabilities)
    seen = run("docs/crf.md", tmp_path, monkeypatch)
    assert seen["refined"].shape == probabilities.shape
    assert (seen["mask"] == np.where(halves[..., 0], 2, 1)).all()


def test_the_picture_of_the_readme(tmp_path, monkeypatch):
    panels, pictures = tmp_path / "runs/demo/panels", tmp_path / "docs/pictures"
    panels.mkdir(parents=True)
    pictures.mkdir(parents=True)
    for number in (131, 168, 243):
        Image.new("RGB", (50, 20 + number), (number, 0, 0)).save(panels / f"test_{number:05}.png")
    run("docs/code.md", tmp_path, monkeypatch)
    with Image.open(pictures / "scenes.png") as strip:
        assert strip.size == (50, 3 * 20 + 131 + 168 + 243)
