import builtins
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cosa import crf
from cosa.core.errors import UserError
from cosa.crf import PRESETS, dense_crf, working_memory
from cosa.lattice import Lattice, bilateral_features
from cosa.lattice.filter import spatial_features


def photograph(h, w, seed=0):
    """(h, w, 3) uint8: a disc on a ground, both of smooth colours, with noise."""
    generator = torch.manual_seed(seed)
    coarse = 255 * torch.rand(2, 3, 3, 3, generator=generator)
    smooth = F.interpolate(coarse, (h, w), mode="bilinear")
    image = torch.where(disc(h, w), smooth[0], smooth[1])
    image = image + 3 * torch.randn(3, h, w, generator=generator)
    return image.clamp(0, 255).byte().permute(1, 2, 0).contiguous()


def disc(h, w):
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return (y - h / 2) ** 2 + (x - w / 2) ** 2 < (h / 3) ** 2


def segmentation(classes, h, w, noise=1.0, seed=0):
    """(classes, h, w) probabilities: the disc is class 1, the ground 0, both known roughly."""
    generator = torch.manual_seed(seed)
    scores = noise * torch.randn(1, classes, h // 4 + 1, w // 4 + 1, generator=generator)
    scores = F.interpolate(scores, (h, w), mode="bilinear")[0]
    scores[2:] -= 3
    scores[1] += 2.0 * disc(h, w)
    scores[0] += 2.0 * ~disc(h, w)
    return scores.softmax(dim=0)


def lattice_affinity(features):
    return Lattice(features.double()).filter(torch.eye(len(features), dtype=torch.float64))


def exact_affinity(features):
    return torch.exp(-torch.cdist(features.double(), features.double()) ** 2 / 2)


def slow_crf(image, probabilities, iterations, gaussian, bilateral, affinity=lattice_affinity):
    """Mean field with the kernels as matrices, pixel by pixel."""
    classes, h, w = probabilities.shape
    kernel = torch.zeros(h * w, h * w, dtype=torch.float64)
    for weight, features in (
        (gaussian[0], spatial_features(h, w, gaussian[1])),
        (bilateral[0], bilateral_features(image, *bilateral[1:])),
    ):
        matrix = affinity(features)
        norm = matrix.sum(dim=1) ** -0.5
        kernel += weight * norm[:, None] * matrix * norm
    unary = -probabilities.double().flatten(1).clamp(1e-5, 1).log()
    q = (-unary).softmax(dim=0)
    for _ in range(iterations):
        updated = torch.empty_like(q)
        for i in range(h * w):
            # A different label costs the affinity: up to a constant, the same label earns it.
            energy = unary[:, i] - (kernel[i] * q).sum(dim=1)
            updated[:, i] = torch.exp(-energy) / torch.exp(-energy).sum()
        q = updated
    return q.reshape(classes, h, w)


SETTINGS = [
    (1, (1, 1), (4, 20, 5)), (5, (3, 2), (4, 8, 20)), (3, (2, 1), (0, 8, 20)),
    (3, (0, 1), (5, 8, 20)),
]


@pytest.mark.parametrize("iterations, gaussian, bilateral", SETTINGS)
def test_torch_is_mean_field(iterations, gaussian, bilateral):
    image, p = photograph(13, 10), segmentation(3, 13, 10)
    refined = dense_crf(image, p, iterations, gaussian, bilateral)
    expected = slow_crf(image, p, iterations, gaussian, bilateral)
    assert torch.allclose(refined.double(), expected, atol=2e-4)
    assert (refined - p).abs().max() > 0.1


def test_one_pixel_by_hand():
    p = torch.tensor([0.25, 0.75]).reshape(2, 1, 1)
    refined = dense_crf(torch.zeros(1, 1, 3, dtype=torch.uint8), p, iterations=1)
    # Both kernels are 1, the weights 1 and 4.
    scores = [0.25 * math.exp(5 * 0.25), 0.75 * math.exp(5 * 0.75)]
    assert refined[1].item() == pytest.approx(scores[1] / sum(scores))


def test_the_lattice_serves_as_well_as_the_exact_gaussian():
    image, p = photograph(24, 20), segmentation(3, 24, 20)
    refined = dense_crf(image, p, 3, (1, 1), (4, 10, 20))
    expected = slow_crf(image, p, 3, (1, 1), (4, 10, 20), exact_affinity)
    assert (refined.argmax(dim=0) == expected.argmax(dim=0)).float().mean() > 0.98


def test_contours_move_to_the_edges_of_the_image():
    image, truth = photograph(48, 64), disc(48, 64)
    p = segmentation(4, 48, 64, noise=1.5)
    before = (p.argmax(dim=0) == truth).float().mean()
    after = (dense_crf(image, p).argmax(dim=0) == truth).float().mean()
    assert before < 0.93 and after > before + 0.04


@pytest.mark.parametrize("backend", ["torch", "pydensecrf"])
def test_without_iterations_or_kernels_nothing_is_refined(backend):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    image, p = photograph(8, 9), segmentation(3, 8, 9)
    for options in ({"iterations": 0}, {"gaussian": (0, 1), "bilateral": (0, 1, 1)}):
        assert torch.allclose(dense_crf(image, p, backend=backend, **options), p, atol=1e-5)


def test_order_of_the_classes_does_not_matter():
    image, p = photograph(16, 16), segmentation(30, 16, 16)
    order = torch.randperm(30, generator=torch.manual_seed(0))
    refined = dense_crf(image, p)
    assert torch.allclose(dense_crf(image, p[order]), refined[order], atol=1e-4)
    assert torch.allclose(refined.sum(dim=0), torch.ones(16, 16), atol=1e-5)


def test_certain_probabilities_are_borne():
    image = photograph(16, 16)
    p = torch.stack([disc(16, 16), ~disc(16, 16), torch.zeros(16, 16)]).float()
    refined = dense_crf(image, p)
    assert refined.isfinite().all() and (refined.argmax(dim=0) == p.argmax(dim=0)).all()
    expected = slow_crf(image, p, 2, (1, 1), (4, 121, 5))
    assert torch.allclose(dense_crf(image, p, 2).double(), expected, atol=2e-4)


def test_a_probability_of_zero_is_taken_for_1e_5():
    # 12 against -log(1e-5) = 11.5: the neighbours overrule a single pixel.
    p = torch.zeros(2, 9, 9)
    p[0] = 1
    p[:, 4, 4] = torch.tensor([0.0, 1.0])
    image = torch.zeros(9, 9, 3, dtype=torch.uint8)
    refined = dense_crf(image, p, 1, (0, 1), (12, 50, 5))
    expected = slow_crf(image, p, 1, (0, 1), (12, 50, 5))
    assert 0.5 < expected[0, 4, 4] < 0.9
    assert torch.allclose(refined.double(), expected, atol=1e-3)


def test_a_probability_that_is_not_a_number_is_not_hidden():
    p = segmentation(3, 8, 9)
    p[2, 4, 4] = float("nan")
    assert dense_crf(photograph(8, 9), p).isnan().any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1)])
def test_narrow_images(shape):
    refined = dense_crf(photograph(*shape), segmentation(3, *shape))
    assert refined.shape == (3, *shape) and (refined >= 0).all()
    assert torch.allclose(refined.sum(dim=0), torch.ones(shape).to(refined))


# Classes that are negligible everywhere


def filtered_channels(monkeypatch):
    channels, original = [], Lattice.filter

    def spy(self, values):
        channels.append(values.shape[1])
        return original(self, values)

    monkeypatch.setattr(Lattice, "filter", spy)
    return channels


def many_classes(h, w, classes=81):
    """Five classes compete; the others are so improbable that some are dropped and some not."""
    p = segmentation(classes, h, w)
    strength = torch.logspace(0, -4, classes - 5)[:, None, None]
    p[5:] *= strength
    return p / p.sum(dim=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_negligible_classes_are_dropped_and_put_back(monkeypatch, preset):
    image, p = photograph(40, 48), many_classes(40, 48)
    channels = filtered_channels(monkeypatch)
    refined = dense_crf(image, p, **PRESETS[preset])
    assert 16 <= channels[-1] < 60
    exact = dense_crf(image, p, **PRESETS[preset], negligible=0)
    assert channels[-1] == 81
    assert (refined.argmax(dim=0) == exact.argmax(dim=0)).float().mean() >= 0.999
    assert torch.allclose(refined, exact, atol=5e-3)
    assert torch.allclose(refined.sum(dim=0), torch.ones(40, 48), atol=1e-5)


def test_dropped_classes_keep_their_shares():
    image, p = photograph(16, 16), torch.full((40, 16, 16), 0.001)
    p[3] += 0.96 * (0.3 + 0.4 * disc(16, 16))
    p[7] += 0.96 * (0.7 - 0.4 * disc(16, 16))
    p[20] *= 3
    p /= p.sum(dim=0)
    refined = dense_crf(image, p)
    others = [k for k in range(40) if k not in (3, 7)]
    assert torch.allclose(refined[20], 3 * refined[0])
    assert (refined[others] <= p[others]).all()  # others are heard, and win
    assert (refined[[3, 7]].argmax(dim=0) == p[[3, 7]].argmax(dim=0)).all()


def test_dropped_classes_do_not_gain_from_being_many():
    # Together they are as probable as the only class that is heard, but each speaks for itself.
    image, p = photograph(16, 16), torch.full((51, 16, 16), 0.01)
    p[0] = 0.5
    refined = dense_crf(image, p)
    exact = dense_crf(image, p, negligible=0)
    assert exact[0].min() > 0.9
    assert torch.allclose(refined, exact, atol=5e-3)


def test_classes_that_are_all_negligible_stay_as_they_are():
    p = torch.full((100, 4, 4), 0.01)
    assert torch.allclose(dense_crf(photograph(4, 4), p), p)


def test_working_memory_counts_pixels_and_classes():
    assert working_memory(200, 21) == 2 * working_memory(100, 21)
    assert working_memory(100, 81) > 2 * working_memory(100, 21)
    assert working_memory(100, 2) == working_memory(100, 16)  # padded
    # As measured for a photograph of 500x375 pixels and 21 classes: 190 to 280 MiB.
    assert 190 < working_memory(500 * 375, 21) / 2**20 < 280


# Kernels of position that are kept


@pytest.fixture
def built(monkeypatch):
    """The numbers of features of all lattices that are built."""
    kinds = []

    def build(features):
        kinds.append(features.shape[1])
        return Lattice(features)

    monkeypatch.setattr(crf, "Lattice", build)
    crf._kept_kernel.cache_clear()
    yield kinds
    crf._kept_kernel.cache_clear()


def test_a_kernel_of_position_serves_all_images_of_a_size(built):
    p = segmentation(3, 12, 15)
    fresh = []
    for seed in range(2):
        crf._kept_kernel.cache_clear()
        fresh.append(dense_crf(photograph(12, 15, seed), p))
    assert built == [2, 5] * 2
    with torch.inference_mode():
        assert torch.equal(dense_crf(photograph(12, 15), p), fresh[0])
    assert torch.equal(dense_crf(photograph(12, 15, 1), p), fresh[1])
    assert built[4:] == [5, 5]
    # Another weight, deviation or size asks for another.
    for gaussian in ((2, 1), (1, 2)):
        assert not torch.allclose(dense_crf(photograph(12, 15), p, gaussian=gaussian), fresh[0])
    dense_crf(photograph(15, 12), p.mT)
    assert built[6:] == [2, 5] * 3


def test_kernels_of_large_images_and_of_many_sizes_are_not_kept(built, monkeypatch):
    for _ in range(2):
        for side in range(4, 5 + crf._KEPT_SIZES):
            dense_crf(photograph(side, 4), segmentation(3, side, 4))
    assert built == [2, 5] * 2 * (1 + crf._KEPT_SIZES)
    monkeypatch.setattr(crf, "_KEPT_PIXELS", 15)
    dense_crf(photograph(side, 4), segmentation(3, side, 4))
    assert built[-2:] == [2, 5]
    assert crf._kept_kernel.cache_info().currsize == crf._KEPT_SIZES


def test_threads_share_a_kernel(built):
    images = [photograph(40, 30, seed) for seed in range(6)]
    p = segmentation(4, 40, 30)
    expected = [dense_crf(image, p) for image in images]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda image: dense_crf(image, p), images))
    assert all(map(torch.equal, found, expected)) and built.count(2) == 1


# pydensecrf


def test_pydensecrf_holds_the_lock_of_the_interpreter_and_torch_does_not():
    pytest.importorskip("pydensecrf")
    image, p = photograph(150, 200), segmentation(5, 150, 200)
    for backend, held in (("torch", False), ("pydensecrf", True)):
        options = {"iterations": 60, "backend": backend}
        thread = threading.Thread(target=dense_crf, args=(image, p), kwargs=options)
        ticks = [time.perf_counter()]
        thread.start()
        while thread.is_alive():
            time.sleep(0.001)
            ticks.append(time.perf_counter())
        longest = max(after - before for before, after in zip(ticks, ticks[1:], strict=False))
        assert (longest > 0.5 * (ticks[-1] - ticks[0])) == held


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("classes", [2, 21])
def test_backends_agree(preset, classes):
    pytest.importorskip("pydensecrf")
    image, p = photograph(60, 80), segmentation(classes, 60, 80)
    ours = dense_crf(image, p, **PRESETS[preset])
    theirs = dense_crf(image, p, **PRESETS[preset], backend="pydensecrf")
    assert (ours.argmax(dim=0) == theirs.argmax(dim=0)).float().mean() >= 0.999
    assert torch.allclose(ours, theirs, atol=5e-3)
    assert (ours - p).abs().max() > 0.1


def test_a_missing_pydensecrf_is_reported(monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("pydensecrf"):
            raise ModuleNotFoundError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install pydensecrf2"):
        dense_crf(photograph(4, 4), segmentation(2, 4, 4), backend="pydensecrf")


# Types and shapes


@pytest.mark.parametrize("backend", ["torch", "pydensecrf"])
def test_arrays_give_arrays_and_tensors_tensors(backend):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    image, p = photograph(8, 9), segmentation(3, 8, 9)
    expected = dense_crf(image, p, backend=backend)
    assert isinstance(expected, torch.Tensor) and expected.dtype == torch.float32
    array = dense_crf(image.numpy(), p.numpy(), backend=backend)
    assert isinstance(array, np.ndarray) and array.dtype == np.float32
    assert np.array_equal(array, expected.numpy())
    assert dense_crf(image, p.numpy().astype(np.float64), backend=backend).dtype == np.float64
    assert dense_crf(image.numpy(), p.double(), backend=backend).dtype == torch.float64
    assert dense_crf(image, p.half(), backend=backend).dtype == torch.float32


def test_arguments_are_left_as_they_are():
    image, p = photograph(8, 9).numpy(), segmentation(3, 8, 9)
    copies = image.copy(), p.clone()
    image.flags.writeable = False
    p.requires_grad_()
    assert not dense_crf(image, p).requires_grad
    assert np.array_equal(image, copies[0]) and torch.equal(p, copies[1])


@pytest.mark.parametrize("backend", ["torch", "pydensecrf"])
def test_views_of_arrays(backend):
    if backend == "pydensecrf":
        pytest.importorskip("pydensecrf")
    image, p = photograph(8, 9).numpy(), segmentation(3, 8, 9)
    turned = dense_crf(image[:, ::-1, ::-1], p.flip(2), backend=backend)
    copied = np.ascontiguousarray(image[:, ::-1, ::-1])
    assert torch.equal(turned, dense_crf(copied, p.flip(2), backend=backend))


def test_device_is_where_it_computes():
    p = segmentation(3, 8, 9)
    refined = dense_crf(photograph(8, 9), p, device="cpu")
    assert refined.device == p.device


def test_what_has_no_meaning_is_reported():
    image, p = photograph(8, 9), segmentation(3, 8, 9)
    for wrong in (image.float(), image.permute(2, 0, 1), image[..., :2], image[None]):
        with pytest.raises(ValueError, match="image must be"):
            dense_crf(wrong, p)
    for wrong in (p[:, :, :4], p[0], p.long()):
        with pytest.raises(ValueError, match="probabilities must be"):
            dense_crf(image, wrong)
    for options in ({"iterations": -1}, {"gaussian": (-1, 1)}, {"bilateral": (-1, 1, 1)}):
        with pytest.raises(ValueError, match="negative"):
            dense_crf(image, p, **options)
    for options in ({"gaussian": (1, 0)}, {"bilateral": (1, 1, 0)}):
        with pytest.raises(ValueError, match="positive"):
            dense_crf(image, p, **options)
    with pytest.raises(ValueError, match="backend is 'numpy'"):
        dense_crf(image, p, backend="numpy")


@pytest.mark.cuda
@pytest.mark.parametrize("preset", PRESETS)
def test_on_a_gpu_it_is_that_on_the_cpu(preset):
    image, p = photograph(60, 80), segmentation(6, 60, 80)
    refined = dense_crf(image, p, device="cuda", **PRESETS[preset])
    torch.testing.assert_close(refined, dense_crf(image, p, **PRESETS[preset]), rtol=0, atol=1e-3)
