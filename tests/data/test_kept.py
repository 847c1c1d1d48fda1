import numpy as np
import pytest
from PIL import Image

from cosa.core.errors import UserError
from cosa.data.base import FileDataset, SegmentationDataset
from cosa.data.images import LazyFile
from cosa.data.kept import KeptImages
from cosa.data.loader import training_loader
from cosa.data.masks import MaskFiles

# From decoding at full size to 1/4 of it.
AUGMENT = dict(crop_size=24, scale_min=0.12, scale_max=1.0)


@pytest.fixture
def files(tmp_path):
    """Four JPEG files, one of them turned by its metadata, and a PNG; with masks."""
    paths = []
    for number in range(5):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        paths.append(tmp_path / f"{number}.{'png' if number == 4 else 'jpg'}")
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 1 else 1
        Image.fromarray(pixels).save(paths[-1], exif=exif)
    Image.fromarray(np.eye(72, 96, dtype=np.uint8)).save(tmp_path / "mask.png")
    labels = np.ones((5, 1), dtype=np.uint8)
    return FileDataset(("a",), [path.stem for path in paths], labels, paths,
                       MaskFiles({path.stem: tmp_path / "mask.png" for path in paths}, ("a",)))


@pytest.fixture
def decodings(monkeypatch):
    """The reductions at which files are decoded, one for each time."""
    decode, seen = LazyFile.decode, []

    def count(image, shrink=1.0):
        decoded = decode(image, shrink)
        seen.append(decoded.reduction)
        return decoded

    monkeypatch.setattr(LazyFile, "decode", count)
    return seen


def batches(dataset, **options):
    loader = training_loader(dataset, batch_size=5, seed=0, iterations=12, **AUGMENT, **options)
    return [{key: value.numpy() for key, value in batch.items()} for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_bit_for_bit(files, workers):
    for first, second in zip(batches(files, workers=0),
                             batches(files, workers=workers, keep_decoded=True), strict=True):
        assert set(first) == set(second)
        assert all(np.array_equal(first[key], second[key]) for key in first)


def test_files_are_decoded_once_for_each_fraction(files, decodings):
    batches(files, workers=0)
    assert len(decodings) == 12 * 5  # the five files in twelve epochs
    assert {1, 2, 4} <= set(decodings)
    decodings.clear()
    batches(files, workers=0, keep_decoded=True)
    assert len(decodings) <= 4 * 4 + 1 and decodings.count(1) <= 5  # a PNG is always whole


def test_it_is_the_data_set_itself_otherwise(files, decodings):
    kept = KeptImages(files)
    assert len(kept) == 5 and kept.classes == ("a",) and kept.has_masks
    assert np.array_equal(kept.mask(2), files.mask(2))
    for index in range(5):
        assert kept.open_image(index).size == files.open_image(index).size
        assert np.array_equal(kept.image(index), files.image(index))
        assert kept.image(index) is kept.image(index)
    assert len(decodings) == 2 * 5


def test_images_that_are_made_are_kept_too():
    made = []

    class Made(SegmentationDataset):
        classes, palette, names, labels = ("a",), [], ["0"], np.ones((1, 1), dtype=np.uint8)

        def image(self, index):
            made.append(index)
            return Image.new("RGB", (30, 20), (1, 2, 3))

    batches(Made(), workers=0, keep_decoded=True)
    assert made == [0]


def test_damage_is_told_each_time(files):
    path = files.image_paths[0]
    path.write_bytes(path.read_bytes()[:400])
    kept = KeptImages(files)
    for _ in range(2):
        with pytest.raises(UserError, match="0.jpg cannot be read"):
            kept.image(0)
    with pytest.raises(UserError, match="0.jpg"):
        kept.check()
