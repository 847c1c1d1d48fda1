import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from cosa.data.augmentations import apply_strong, blurred, strong_operations
from cosa.data.batches import to_device
from cosa.data.images import open_image, read_image, to_tensor
from cosa.data.transforms import Geometry, crop, sample_geometry, training_views
from cosa.encoders.normalization import IMAGENET

MEAN, STD = (torch.tensor(colour).view(3, 1, 1) for colour in IMAGENET)

PLAIN = dict(crop_size=32, scale_min=1.0, scale_max=1.0, flip=0.0, blur=0.0, strong=False)


def picture(width=40, height=30, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def pixels(view):
    """(S, S, 3) in 0..255."""
    return (view.permute(1, 2, 0) * 255).numpy()


def normalised(view):
    """What the network makes of a view (3, S, S)."""
    return (view - MEAN) / STD


def views(image, seed=0, **options):
    """A sample as the networks read it."""
    sample = training_views(image, np.random.default_rng(seed), **{**PLAIN, **options})
    batch = to_device({key: value[None] for key, value in sample.items()}, "cpu", MEAN)
    return {key: value[0] for key, value in batch.items()}


def test_without_scaling_the_view_is_a_window_of_the_image():
    image = picture(40, 30)
    geometry = sample_geometry(
        image.size, np.random.default_rng(0), crop_size=32, scale_min=1, scale_max=1, flip=0
    )
    left, top, right, bottom = (round(edge) for edge in geometry.source)
    assert (right - left, bottom - top) == (32, 30) and (top, bottom) == (0, 30)
    view = views(image)
    x0, y0, x1, y1 = geometry.target
    expected = np.asarray(image)[:, left:right]
    np.testing.assert_allclose(pixels(view["weak"])[y0:y1, x0:x1], expected, atol=1e-3)


def test_padding_is_the_mean_colour_and_not_valid():
    view = views(picture(20, 10), scale_min=0.5, scale_max=1.5, blur=1.0, strong=True)
    assert 0 < view["valid"].sum() <= 30 * 15
    for name in ("weak", "strong"):
        assert view[name].dtype == torch.float32 and 0 <= view[name].min() <= view[name].max() <= 1
        seen = normalised(view[name])
        assert torch.count_nonzero(seen[:, ~view["valid"]]) == 0
        assert torch.count_nonzero(seen[:, view["valid"]]) > 0


def test_strong_operations_do_not_leak_into_the_padding():
    white = Image.new("RGB", (8, 8), "white")
    for seed in range(40):
        view = views(white, seed, strong=True)
        assert view["valid"].sum() == 64
        assert torch.count_nonzero(normalised(view["strong"])[:, ~view["valid"]]) == 0


def test_batches_read_as_if_padded_after_normalisation():
    options = PLAIN | dict(scale_min=0.5, scale_max=1.5, flip=0.5, strong=True)
    for seed in range(4):
        image, rng = picture(20, 44, seed), np.random.default_rng(seed)
        geometry = sample_geometry(
            image.size, np.random.default_rng(seed),
            **{key: options[key] for key in ("crop_size", "scale_min", "scale_max", "flip")}
        )
        canvas = torch.zeros(3, 32, 32)
        left, top, right, bottom = geometry.target
        canvas[:, top:bottom, left:right] = normalised(to_tensor(crop(image, geometry)))
        sample = training_views(image, rng, **options)
        batch = to_device({key: value[None] for key, value in sample.items()}, "cpu", MEAN)
        assert torch.equal(normalised(batch["weak"][0]), canvas)


def test_valid_box_is_full_when_the_image_covers_the_crop():
    assert views(picture(64, 64), scale_min=0.5, scale_max=2.0)["valid"].all()


def test_flip_mirrors_content_and_box():
    image = picture(20, 20)
    plain, mirrored = views(image), views(image, flip=1.0)
    assert torch.equal(plain["valid"], mirrored["valid"])
    columns = plain["valid"].any(0)
    a, b = plain["weak"][:, :, columns], mirrored["weak"][:, :, columns]
    torch.testing.assert_close(a.flip(-1), b)
    assert not torch.equal(a, b)


def test_crop_equals_resize_then_cut_away_from_its_edges():
    image = picture(60, 60).resize((120, 120), Image.BICUBIC)
    geometry = Geometry(source=(20.0, 40.0, 84.0, 104.0), target=(0, 0, 32, 32), flip=False)
    whole = np.asarray(image.resize((60, 60), Image.BILINEAR), dtype=int)[20:52, 10:42]
    part = np.asarray(crop(image, geometry), dtype=int)
    assert abs(whole - part)[2:-2, 2:-2].max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 3), (100, 32), (500, 375)])
def test_geometry_stays_inside_image_and_crop(size):
    rng = np.random.default_rng(1)
    for _ in range(200):
        g = sample_geometry(size, rng, crop_size=32, scale_min=0.01, scale_max=2.0, flip=0.5)
        for axis in (0, 1):
            assert 0 <= g.source[axis] < g.source[axis + 2] <= size[axis]
            assert 0 <= g.target[axis] < g.target[axis + 2] <= 32


def test_scale_position_and_flip_cover_their_ranges():
    rng = np.random.default_rng(2)
    drawn = [
        sample_geometry((100, 100), rng, crop_size=50, scale_min=0.25, scale_max=2.0, flip=0.3)
        for _ in range(2000)
    ]
    scales = np.array([
        (g.target[2] - g.target[0]) / (g.source[2] - g.source[0]) for g in drawn
    ])  # fmt: skip
    assert scales.min() < 0.3 and scales.max() > 1.9 and abs(scales.mean() - 1.125) < 0.05
    assert abs(np.mean([g.flip for g in drawn]) - 0.3) < 0.04
    cut = [g.source[0] for g in drawn if g.source[2] - g.source[0] < 40]
    assert min(cut) < 5 and max(cut) > 55
    placed = [g.target[0] for g in drawn if g.target[2] - g.target[0] < 40]
    assert min(placed) == 0 and max(placed) > 15


def test_views_are_a_function_of_the_generator_state():
    image = picture()
    options = dict(scale_min=0.5, scale_max=2.0, flip=0.5, blur=0.5, strong=True)
    first, again, other = (views(image, seed, **options) for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["weak"], other["weak"])


def test_strong_off_gives_equal_views_and_the_same_geometry():
    image = picture()
    options = dict(scale_min=0.5, scale_max=2.0, flip=0.5, blur=0.5)
    for seed in range(5):
        off, on = views(image, seed, **options), views(image, seed, strong=True, **options)
        assert torch.equal(off["weak"], off["strong"])
        assert torch.equal(off["weak"], on["weak"]) and torch.equal(off["valid"], on["valid"])


def test_blur_smooths_both_views():
    image = picture(32, 32)
    sharp, blurred = views(image), views(image, blur=1.0, blur_min=2.0, blur_max=2.0)
    assert blurred["weak"].std() < 0.5 * sharp["weak"].std()
    assert torch.equal(blurred["weak"], blurred["strong"])


def test_types_and_shapes():
    view = training_views(picture(), np.random.default_rng(0), **PLAIN | {"strong": True})
    assert view["weak"].shape == view["strong"].shape == (32, 32, 3)
    assert view["weak"].dtype == view["strong"].dtype == torch.uint8
    assert view["valid"].shape == (32, 32) and view["valid"].dtype == torch.bool


@pytest.mark.parametrize("operation", strong_operations())
def test_strong_operations_keep_size_and_mode(operation):
    image = picture()
    for magnitude in (0.0, 0.5, 1.0):
        changed = apply_strong(image, operation, magnitude)
        assert changed.size == image.size and changed.mode == "RGB"
    changed = np.asarray(apply_strong(picture().point(lambda v: v // 2 + 30), operation, 0.9))
    same = np.array_equal(changed, np.asarray(picture().point(lambda v: v // 2 + 30)))
    assert same == (operation == "identity")


def test_magnitudes_have_the_documented_ends():
    image = Image.new("RGB", (4, 4), (100, 150, 201))

    def first(operation, magnitude):
        return apply_strong(image, operation, magnitude).getpixel((0, 0))

    assert first("brightness", 0.0) == (10, 15, 20)
    assert first("brightness", 0.5) == (100, 150, 201)
    assert first("posterize", 0.0) == (100, 150, 201)
    assert first("posterize", 1.0) == (96, 144, 192)
    assert first("solarize", 0.0) == (100, 150, 201)
    assert first("solarize", 1.0) == (155, 105, 54)
    assert first("solarize", 0.5) == (100, 105, 54)


def test_every_strong_operation_is_drawn():
    image = Image.fromarray(np.asarray(picture(16, 16)) // 2 + 30)
    results = {n: to_tensor(apply_strong(image, n, 0.9)) for n in ("equalize", "autocontrast")}
    seen = set()
    for seed in range(200):
        view = views(image, seed, strong=True, crop_size=16)
        seen.update(n for n, tensor in results.items() if torch.equal(tensor, view["strong"]))
        if torch.equal(view["weak"], view["strong"]):
            seen.add("identity")
    assert seen == {"equalize", "autocontrast", "identity"}


# Files


def smooth(width, height, cell=8):
    """A picture without edges."""
    return picture(width // cell, height // cell).resize((width, height), Image.BICUBIC)


def difference(first, second):
    return np.abs(np.asarray(first).astype(int) - np.asarray(second))


def test_files_give_the_views_of_their_images(tmp_path):
    smooth(96, 72).save(tmp_path / "a.jpg", quality=90)
    options = dict(crop_size=64, scale_min=0.5, scale_max=2.0)
    for seed in range(3):
        lazy, full = (
            training_views(read(tmp_path / "a.jpg"), np.random.default_rng(seed), **options)
            for read in (open_image, read_image)
        )
        assert all(torch.equal(lazy[key], full[key]) for key in full)


@pytest.mark.parametrize("shrink", [3.1, 5.0, 7.0, 13.0])
def test_a_reduced_decoding_is_close_to_the_full_one(tmp_path, shrink):
    smooth(403, 299, cell=40).save(tmp_path / "a.jpg", quality=90)
    options = dict(
        crop_size=64, scale_min=1 / shrink, scale_max=1 / shrink, flip=0.5, blur=0.0, strong=True
    )
    lazy, full = (
        training_views(read(tmp_path / "a.jpg"), np.random.default_rng(1), **options)
        for read in (open_image, read_image)
    )
    assert torch.equal(lazy["valid"], full["valid"])
    apart = difference(lazy["weak"], full["weak"])[full["valid"]]
    assert 0 < apart.mean() < 1.3 and apart.max() < 12


def test_the_crop_says_how_much_it_shrinks():
    assert Geometry((0.0, 0.0, 80.0, 60.0), (0, 4, 20, 24), False).shrink == 3
    assert Geometry((0.0, 0.0, 8.0, 60.0), (0, 4, 16, 24), False).shrink == 0.5


# Blur


@pytest.mark.parametrize("deviation", [0.1, 0.3, 0.5, 1.0, 1.4, 2.0, 3.5])
def test_blur_is_the_gaussian(deviation):
    image = smooth(40, 31)
    offsets = np.arange(-20, 21)
    weights = np.exp(-0.5 * (offsets / deviation) ** 2)
    weights /= weights.sum()
    exact = np.pad(np.asarray(image, dtype=float), ((20, 20), (20, 20), (0, 0)), mode="edge")
    exact = sum(weight * exact[i : i + 31] for i, weight in enumerate(weights))
    exact = sum(weight * exact[:, i : i + 40] for i, weight in enumerate(weights))
    found = blurred(image, deviation)
    assert found.size == image.size and found.mode == "RGB"
    assert np.abs(found - exact).max() < 2.5
    pillow = image.filter(ImageFilter.GaussianBlur(deviation))
    assert difference(found, pillow)[6:-6, 6:-6].max() <= 4
    assert difference(found, pillow).mean() < 1


def test_blur_leaves_flat_pictures_and_single_pixels_alone():
    for size in ((1, 1), (1, 9), (20, 2)):
        for level in (0, 77, 255):
            image = Image.new("RGB", size, (level, level, 3))
            assert np.array_equal(blurred(image, 2.0), image)
