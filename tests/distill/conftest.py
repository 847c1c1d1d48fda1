"""Generated pictures, a CNN of random weights, and a command line for both."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cosa.encoders.build import build_encoder

OPTIONS = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
TEACHER = "resnet10t"


def picture(seed, size=(60, 44)):
    """Patches of colour, which a teacher of random weights tells apart."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.NEAREST)


@pytest.fixture(scope="session")
def pictures():
    """Makes a picture of a seed and, perhaps, a size."""
    return picture


@pytest.fixture(scope="session")
def options():
    """Of the student."""
    return OPTIONS


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "nested").mkdir()
    for number in range(24):
        # Those held out look like some to learn from: a few steps do not teach more.
        picture(number % 6).save(folder / ("nested" if number % 2 else "") / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def teacher_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(build_encoder(TEACHER, {}).state_dict(), path)
    return path


@pytest.fixture
def arguments(photos, teacher_weights, tmp_path):
    """All but how long."""
    return [str(photos), "--output", str(tmp_path / "student.safetensors"),
            "--student-options", json.dumps(OPTIONS), "--teacher", TEACHER,
            "--teacher-weights", str(teacher_weights), "--crop", "32", "--batch", "8",
            "--device", "cpu"]
