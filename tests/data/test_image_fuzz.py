"""Files damaged at random are refused in one sentence, or are images of the announced size."""

from contextlib import suppress

import pytest
from PIL import Image

from cosa.core.errors import UserError
from cosa.data import images
from cosa.data.images import LazyFile, image_size, read_image
from cosa.data.masks import read_mask
from cosa.data.masks.colors import ColorMap
from tests.helpers.image_fuzz import cases, files


def outcome(path, colors=None):
    """The size of the image in a file, None if it is refused; whatever is asked of it."""
    try:
        size = image_size(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        size = None
    try:
        image = read_image(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None
    assert (image.mode, image.size) == ("RGB", size)
    with suppress(UserError):  # it is no mask, mostly
        assert read_mask(path, 254, colors).shape == size[::-1]
    small = LazyFile(path).decode(4)
    assert small.image.size == tuple(-(-side // small.reduction) for side in size)
    return size


@pytest.fixture
def few_pixels(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 10**6)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)


@pytest.mark.filterwarnings("ignore")
def test_the_files_that_are_damaged_are_whole_before(tmp_path):
    for name, content in files().items():
        (tmp_path / name).write_bytes(content)
        assert outcome(tmp_path / name) in ((17, 11), (11, 17)), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed, count", [
    (0, 600), pytest.param(1, 12_000, marks=pytest.mark.slow),
])
def test_damaged_files(tmp_path, few_pixels, seed, count):
    path, seen = tmp_path / "image", []
    (tmp_path / "colors.csv").write_text("a,1,1,1\n")
    colors = [None, ColorMap(tmp_path / "colors.csv", ("a",))]
    for number, (name, content) in enumerate(cases(seed, count)):
        path.write_bytes(content)
        try:
            seen.append(outcome(path, colors[number % 2]))
        except Exception as error:
            raise AssertionError(f"case {number} of seed {seed}, {name}: {content!r}") from error
    # Neither all are refused, nor none: else the damage would prove nothing.
    refused = seen.count(None) / count
    assert 0.2 < refused < 0.9
