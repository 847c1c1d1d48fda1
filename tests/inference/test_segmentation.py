"""The parts of cosa.inference, without the program around them."""

import copy
import json
import math
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import cosa
from cosa import cam as cams
from cosa.cam import filter_by_labels
from cosa.core.threads import parallel_map
from cosa.data.images import network_input, to_tensor
from cosa.inference import outputs, pipeline, segmenter
from cosa.inference.finished import read_back
from cosa.inference.jobs import CannotGoOn, Job, plan
from cosa.inference.pipeline import segment_files
from cosa.inference.pixels import argmax_and_probability, argmax_at_size, pseudo_labels_at_size
from cosa.inference.segmenter import Segmenter, shrunk
from cosa.inference.settings import CrfSettings, Settings
from cosa.inference.windows import SlidingNetwork, fade, starts
from cosa.network import NetworkOutput
from cosa.predict import multi_scale
from cosa.targets import cam_pseudo_labels
from tests.helpers.inference import SIZE, read, save, save_smooth

WHOLE = Settings(size=SIZE, scales=(1.0, 0.5), flip=True)
CRF = CrfSettings(iterations=2, gaussian=(1.0, 1.0), bilateral=(4.0, 20.0, 10.0))


@pytest.fixture(scope="module")
def network(weights):
    return cosa.load(weights)


class PatchMeans(torch.nn.Module):
    """A network that sees each patch by itself, so that windows change nothing."""

    stride = 4

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        means = F.avg_pool2d(images, self.stride)
        return NetworkOutput(means.amax((2, 3)), None, means, -means, 2 * means, None)


class Positions(PatchMeans):
    """A network whose maps tell where in its window a patch lies."""

    def forward(self, images):
        output = super().forward(images)
        rows = torch.arange(output.cam.shape[2], dtype=torch.float32)[:, None]
        output.seg = (output.cam + rows + 10 * torch.arange(output.cam.shape[3])).clone()
        return output


@pytest.mark.parametrize("length", [1, 5, 6, 7, 30, 31])
@pytest.mark.parametrize("window, step", [(6, 6), (6, 4), (6, 1), (1, 1)])
def test_windows_reach_both_borders_and_leave_no_gap(length, window, step):
    first = starts(length, window, step)
    assert first[0] == 0
    if length <= window:
        assert first == [0]
    else:
        assert first[-1] == length - window
        assert all(0 < b - a <= step for a, b in zip(first, first[1:], strict=False))


@pytest.mark.parametrize("size", [(4, 4), (8, 20), (32, 36), (12, 12), (16, 16), (40, 8)])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_windows_change_nothing_for_a_network_that_sees_patches_alone(size, batch_size):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    network = PatchMeans()
    expected = network(images)
    network.seen.clear()
    sliding = SlidingNetwork(network, 16, 9, batch_size, ("seg", "cam", "aux_cam"))
    output = sliding(images)
    for name in ("seg", "cam", "aux_cam"):
        assert torch.allclose(getattr(output, name), getattr(expected, name), atol=1e-6)
    assert torch.equal(output.logits, expected.logits)
    for batch, _, height, width in network.seen:
        assert batch <= 2 * batch_size
        assert (height, width) == (min(16, size[0]), min(16, size[1]))


def test_windows_are_blended_by_their_weights():
    images = torch.randn(1, 3, 28, 40, generator=torch.Generator().manual_seed(0))
    network, window, step = Positions(), 4, 2  # in patches of 4 pixels
    output = SlidingNetwork(network, 16, 8, 4, ("seg",))(images).seg
    total, weights = torch.zeros(3, 7, 10).double(), torch.zeros(7, 10).double()
    for top in starts(7, window, step):
        for left in starts(10, window, step):
            part = images[..., 4 * top : 4 * top + 16, 4 * left : 4 * left + 16]
            seg = network(part).seg[0].double()
            for y in range(window):
                for x in range(window):
                    share = math.sin(math.pi * (y + 0.5) / 4) ** 2
                    share *= math.sin(math.pi * (x + 0.5) / 4) ** 2
                    total[:, top + y, left + x] += share * seg[:, y, x]
                    weights[top + y, left + x] += share
    assert torch.allclose(output[0].double(), total / weights, atol=1e-5)
    # A map fades out: its neighbours decide at the border of a window.
    assert fade(16)[0] < 0.02 < 0.98 < fade(16)[8] <= 1


def test_a_single_window_is_the_network_itself(network):
    images = torch.randn(1, 3, 24, 16)
    with torch.no_grad():
        one = SlidingNetwork(network, 32, 32, 4, ("seg", "cam"))(images)
        expected = network(images)
    for name in ("seg", "cam", "logits"):
        assert torch.allclose(getattr(one, name), getattr(expected, name), atol=1e-6)


def test_slide_mode_fuses_scales_and_flips_of_the_image_in_its_proportions(tmp_path, network):
    with Image.open(save_smooth(tmp_path / "a.png", (150, 70))) as image:
        slide = Settings(32, (1.0, 0.5), True, "slide", window=32, stride=20, max_size=100)
        use = Segmenter(network, slide, cam=True, batch_size=2)
        (maps,) = use.predict([use.prepare(image, [1, 3])])
        # 150 x 70 shrinks to 100 x 47, that is 13 x 6 patches, to be kept at 4 cells each.
        assert maps.seg.shape == (3, 24, 52) and maps.cam.shape == (2, 24, 52)
        pixels = to_tensor(image.resize((104, 48), Image.Resampling.BILINEAR))[None]
    assert use.saved_grid((70, 150)) == (24, 52)
    sliding = SlidingNetwork(network, 32, 20, 7, ("seg", "cam"))
    fused = multi_scale(sliding, pixels, (1.0, 0.5), True, (24, 52), ("seg", "cam"))
    assert torch.allclose(maps.seg, fused.seg[0, [0, 1, 3]], atol=1e-5)
    assert torch.allclose(maps.cam, fused.cam[0, [0, 2]], atol=1e-5)
    # Normalised over the whole image, not window by window.
    assert maps.cam.amax((1, 2)).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (33, 5), (64, 64), (6, 9), (129, 50)])
def test_argmax_in_strips_equals_the_whole(size, monkeypatch):
    logits = torch.randn(5, 6, 9, generator=torch.Generator().manual_seed(1))
    expected = F.interpolate(logits[None], size, mode="bilinear")[0].argmax(0)
    for limit in (2**22, 1000, 1):
        monkeypatch.setattr(cams, "MAX_VALUES", limit)
        mask = argmax_at_size(logits, size)
        assert mask.dtype == torch.uint8 and mask.shape == size
        assert torch.equal(mask.long(), expected)


def test_memory_of_a_large_mask_is_bounded(monkeypatch):
    widest = []
    interpolate = F.interpolate

    def spy(rows, size, **options):
        widest.append(rows.shape[1] * size[0] * size[1])
        return interpolate(rows, size, **options)

    monkeypatch.setattr(cams.F, "interpolate", spy)
    logits = torch.zeros(21, 4, 4)
    logits[7] = 1
    assert (argmax_at_size(logits, (900, 1200)) == 7).all()
    assert max(widest) <= cams.MAX_VALUES < 21 * 900 * 1200
    assert sum(widest) == 21 * 900 * 1200


def test_parallel_map_is_bounded_ordered_and_lazy():
    started, lock, fed, most = 0, threading.Lock(), 0, 0
    release = threading.Event()

    def feed():
        nonlocal fed
        for k in range(200):
            fed += 1
            yield k

    def work(k):
        nonlocal started
        with lock:
            started += 1
        if k == 0:  # the slow one, behind which the others must not pile up
            release.wait(0.2)
        return k * k

    results = []
    for result in parallel_map(work, feed(), workers=3, ahead=7):
        results.append(result)
        most = max(most, fed - len(results))
    assert results == [k * k for k in range(200)]
    assert started == 200
    assert 1 <= most <= 6  # with the one handed out: 7


def test_parallel_map_stops_when_closed():
    begun = []

    def work(k):
        begun.append(k)
        time.sleep(0.01)
        return k

    results = parallel_map(work, range(10_000), workers=2, ahead=4)
    assert next(results) == 0
    results.close()
    count = len(begun)
    time.sleep(0.05)
    assert len(begun) == count <= 10


@pytest.mark.parametrize("limit", [2**22, 500])
def test_labels_come_with_their_area_and_probability(limit, monkeypatch):
    monkeypatch.setattr(cams, "MAX_VALUES", limit)
    logits = 20 * torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(1))
    logits[2] -= 1000  # a class that is nowhere
    wide = F.interpolate(logits[None], (23, 31), mode="bilinear")[0].double()
    for passes, probability in ((10, (wide / 10).softmax(0)), (None, wide)):
        mask, count, mean = argmax_and_probability(logits, (23, 31), passes)
        assert torch.equal(mask, argmax_at_size(logits, (23, 31)))
        assert count[2] == 0 and mean[2].isnan() and count.sum() == 23 * 31
        for label in (0, 1, 3):
            assert count[label] == (mask == label).sum()
            expected = probability[label][mask == label].mean()
            assert mean[label] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("limit", [2**22, 500])
def test_pseudo_labels_are_those_of_the_whole_map(limit, monkeypatch):
    monkeypatch.setattr(cams, "MAX_VALUES", limit)
    cam = torch.rand(3, 6, 9, generator=torch.Generator().manual_seed(1))
    wide = F.interpolate(cam[None], (23, 31), mode="bilinear")
    labels = pseudo_labels_at_size(cam, (23, 31), 0.7)
    assert torch.equal(labels.long(), cam_pseudo_labels(wide, 0.7)[0][0])
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}
    assert not pseudo_labels_at_size(cam[:0], (5, 4), 0.0).any()


def test_sides_shrink_in_proportion():
    assert shrunk((300, 500), 500) == (300, 500)
    assert shrunk((600, 1000), 500) == (300, 500)
    assert shrunk((10_000, 2), 500) == (500, 1)


def run(network, source, out, settings, save=("mask",), **options):
    """Outcomes of an image or a folder, and what was written for the first one."""
    jobs = plan(str(source), out, save)
    outcomes = list(segment_files(network, jobs, settings, save=jobs.save, **options))
    assert not any(path.name.endswith(".tmp") for path in out.rglob("*"))
    return outcomes, jobs[0].results


def test_label_filter_is_a_logit_of_minus_infinity(tmp_path, network):
    path = save_smooth(tmp_path / "a.png", (61, 47))
    with Image.open(path) as image:
        fused = multi_scale(network, network_input(image, SIZE)[None], WHOLE.scales, True)
    wide = F.interpolate(fused.seg, (47, 61), mode="bilinear")[0]
    assert len(wide.argmax(0).unique()) > 2  # else the comparison shows nothing
    for present in ([], [2], [1, 3], [1, 2, 3]):
        wide_copy = wide.clone()
        wide_copy[[c for c in (1, 2, 3) if c not in present]] = -math.inf
        labels_of = {"a.png": present}.__getitem__
        outcomes, results = run(network, path, tmp_path / "out", WHOLE, labels_of=labels_of)
        assert outcomes[0].error is None and outcomes[0].mask is None
        expected = wide_copy.argmax(0).numpy()
        assert (read(results["mask"]) == expected).mean() > 0.999


@pytest.mark.parametrize("crf", [None, CRF])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_classes_that_the_scores_deny_are_left_out_as_by_hand(tmp_path, network, mode, crf):
    paths = [save_smooth(tmp_path / f"in/{k}.png", seed=k) for k in range(5)]
    settings = replace(WHOLE, mode=mode, window=24, stride=16, crf=crf)
    chances = {}
    for path in paths:
        with Image.open(path) as image:
            if mode == "whole":
                scored, square = network, network_input(image, SIZE)[None]
            else:
                scored = SlidingNetwork(network, 24, 16, 4, ())
                square = to_tensor(np.array(image.resize((40, 32), Image.BILINEAR)))[None]
        with torch.no_grad():
            scores = multi_scale(scored, square, WHOLE.scales, True, maps=()).logits[0]
        chances[path.name] = torch.sigmoid(scores).tolist()
    middle = sorted(sum(chances.values(), []))[7]
    kept = {name: [k + 1 for k, chance in enumerate(row) if chance >= middle or chance == max(row)]
            for name, row in chances.items()}
    assert len(set(map(tuple, kept.values()))) > 1 and max(map(len, kept.values())) > 1
    save = ("mask", "probabilities")

    def masks(folder, settings, **options):
        run(network, tmp_path / "in", tmp_path / folder, settings, save, **options)
        return [read(tmp_path / folder / path.name) for path in paths]

    found = masks("found", replace(settings, min_class_score=middle))
    expected = masks("by_hand", settings, labels_of=kept.__getitem__)
    every = masks("every", settings)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(found, every, strict=True))
    for path in paths:
        arrays = [np.load(tmp_path / folder / f"{path.stem}.probabilities.npz")
                  for folder in ("found", "by_hand")]
        for name in ("classes", "probabilities"):
            assert np.array_equal(arrays[0][name], arrays[1][name])
        assert set(arrays[0]["classes"]) <= {0, *kept[path.name]}
    # Where labels are known, scores play no part, nor do they in CAMs.
    labels_of = dict.fromkeys(kept, [1, 2, 3]).__getitem__
    known = masks("known", replace(settings, min_class_score=1.0), labels_of=labels_of)
    assert all(np.array_equal(a, b) for a, b in zip(known, every, strict=True))
    for folder, least in (("strict", 1.0), ("free", 0.0)):
        run(network, tmp_path / "in", tmp_path / folder,
            replace(settings, min_class_score=least), ("cam",))
    for path in paths:
        strict, free = (np.load(tmp_path / f"{folder}/{path.stem}.cam.npz")
                        for folder in ("strict", "free"))
        assert np.array_equal(strict["cam"], free["cam"])


def test_cam_and_pseudo_labels_are_those_of_the_evaluation(tmp_path, network):
    path = save_smooth(tmp_path / "a.png", (61, 47))
    with Image.open(path) as image:
        square = network_input(image, SIZE)[None]
    fused = multi_scale(network, square, WHOLE.scales, True)
    settings = Settings(SIZE, WHOLE.scales, True, threshold=0.4)
    labels_of = {"a.png": [1, 3]}.__getitem__
    options = dict(save=("cam", "cpl"), labels_of=labels_of)
    outcomes, results = run(network, path, tmp_path / "out", settings, **options)
    assert outcomes[0].error is None and set(results) == {"cam", "cpl"}
    wide = F.interpolate(fused.cam, (47, 61), mode="bilinear")
    expected = cam_pseudo_labels(filter_by_labels(wide, torch.tensor([[1, 0, 1]])), 0.4)[0][0]
    assert set(expected.unique().tolist()) == {0, 1, 3}
    assert (read(results["cpl"]) == expected.numpy()).mean() > 0.999
    with np.load(results["cam"]) as saved:
        assert saved["cam"].dtype == np.float16 and saved["cam"].shape == (2, 16, 16)
        assert saved["classes"].tolist() == [1, 3] and saved["size"].tolist() == [47, 61]
        grid = F.interpolate(fused.cam[:, [0, 2]], (16, 16), mode="bilinear")[0]
        assert np.allclose(saved["cam"], grid, atol=1e-3)


def test_without_labels_the_predicted_classes_have_cams(tmp_path, network):
    paths = [save_smooth(tmp_path / f"in/{k}.png", seed=k) for k in range(6)]
    settings = Settings(SIZE, (1.0,), False, threshold=0.0)
    run(network, tmp_path / "in", tmp_path / "out", settings, save=("cam", "cpl"))
    counts = set()
    for path in paths:
        with Image.open(path) as image, torch.no_grad():
            scores = network(network_input(image, SIZE)[None]).logits[0]
        predicted = [k + 1 for k, score in enumerate(scores.tolist()) if score > 0]
        counts.add(len(predicted))
        with np.load(tmp_path / f"out/{path.stem}.cam.npz") as saved:
            assert saved["classes"].tolist() == predicted
            assert saved["cam"].shape == (len(predicted), 16, 16)
        assert set(np.unique(read(tmp_path / f"out/{path.stem}.cpl.png"))) <= {0, *predicted}
    assert counts - {0, 3}  # else the comparison shows nothing


def test_probabilities_are_small_and_agree_with_the_mask(tmp_path, network):
    path = save_smooth(tmp_path / "a.png", (61, 47))
    outcomes, results = run(
        network, path, tmp_path / "out", WHOLE, save=("mask", "probabilities"), details=True
    )
    with np.load(results["probabilities"]) as saved:
        probabilities, classes = saved["probabilities"], saved["classes"]
        assert saved["size"].tolist() == [47, 61]
    assert probabilities.dtype == np.float16 and probabilities.shape[1:] == (16, 16)
    assert np.allclose(probabilities.astype(np.float64).sum(0), 1, atol=0.01)
    assert (probabilities.max((1, 2)) >= outputs.LEAST_SAVED_PROBABILITY - 1e-6).all()
    with Image.open(path) as image:
        seg = multi_scale(network, network_input(image, SIZE)[None], WHOLE.scales, True).seg
    # Logits are summed over four passes.
    expected = (F.interpolate(seg, (16, 16), mode="bilinear")[0] / 4).softmax(0)
    kept = [k for k in range(4) if expected[k].max() >= outputs.LEAST_SAVED_PROBABILITY]
    assert classes.tolist() == kept and np.allclose(probabilities, expected[kept], atol=1e-3)
    wide = F.interpolate(torch.from_numpy(probabilities).float()[None], (47, 61), mode="bilinear")
    mask = read(results["mask"])
    assert (classes[wide[0].argmax(0).numpy()] == mask).mean() > 0.95
    found = {f.label: f for f in outcomes[0].found}
    assert list(found) == np.unique(mask).tolist() and len(found) > 1
    assert sum(f.share for f in found.values()) == pytest.approx(1)
    assert all(0.25 < f.probability <= 1 for f in found.values())


def test_negligible_classes_are_not_saved(tmp_path, network):
    path = save_smooth(tmp_path / "a.png")
    use = Segmenter(network, WHOLE)
    with Image.open(path) as image:
        (maps,) = use.predict([use.prepare(image, None)])
    maps.seg = maps.seg.clone()
    maps.seg[1] -= 4 * 1000
    saved = outputs.probability_arrays(maps, (30, 40), (16, 16))
    assert 1 not in saved["classes"] and len(saved["classes"]) == len(saved["probabilities"])


def test_crf_starts_from_the_mean_logits_at_full_size(tmp_path, network, monkeypatch):
    path = save_smooth(tmp_path / "a.png", (61, 47))
    seen = {}

    def fake(image, probabilities, **options):
        seen.update(image=image, probabilities=probabilities, options=options)
        seen["thread"] = threading.current_thread()
        return probabilities.flip(0)  # whatever was likeliest is not so any more

    monkeypatch.setattr(segmenter, "dense_crf", fake)
    settings = Settings(SIZE, WHOLE.scales, True, crf=CRF)
    outcomes, results = run(
        network, path, tmp_path / "out", settings, details=True,
        labels_of={"a.png": [1, 3]}.__getitem__,
    )
    assert seen["thread"] is not threading.main_thread()  # on the CPU beside the network
    assert seen["options"] == dict(
        iterations=2, gaussian=(1.0, 1.0), bilateral=(4.0, 20.0, 10.0), backend="torch"
    )
    with Image.open(path) as image:
        assert np.array_equal(seen["image"], np.asarray(image))
        seg = multi_scale(network, network_input(image, SIZE)[None], WHOLE.scales, True).seg
    wide = F.interpolate(seg[:, [0, 1, 3]], (47, 61), mode="bilinear")[0]
    expected = (wide / 4).softmax(0)
    assert torch.allclose(seen["probabilities"], expected, atol=1e-5)
    mask = read(results["mask"])
    assert np.array_equal(mask, np.array([0, 1, 3])[expected.flip(0).argmax(0).numpy()])
    for found in outcomes[0].found:  # the probabilities of the CRF
        channel = expected.flip(0)[[0, 1, 3].index(found.label)]
        assert found.probability == pytest.approx(float(channel[mask == found.label].mean()))


def test_crf_on_a_gpu_stays_in_the_thread_of_the_network(tmp_path, network, monkeypatch):
    threads = []

    def fake(image, probabilities, **options):
        threads.append(threading.current_thread())
        return probabilities

    monkeypatch.setattr(segmenter, "dense_crf", fake)
    monkeypatch.setattr(Segmenter, "crf_in_threads", False)
    monkeypatch.setattr(Segmenter, "finishes_in_threads", False)
    path = save_smooth(tmp_path / "a.png")
    outcomes, results = run(network, path, tmp_path / "out", Settings(SIZE, crf=CRF))
    assert threads == [threading.main_thread()] and outcomes[0].error is None
    run(network, path, tmp_path / "plain", Settings(SIZE))
    assert results["mask"].read_bytes() == (tmp_path / "plain/a.png").read_bytes()


@pytest.mark.cuda
@pytest.mark.parametrize("backend, threads", [("torch", False), ("pydensecrf", True)])
def test_where_the_crf_runs_beside_a_gpu(network, backend, threads):
    crf = CrfSettings(1, (1.0, 1.0), (4.0, 20.0, 10.0), backend)
    on_gpu = copy.deepcopy(network).cuda()
    assert Segmenter(on_gpu, Settings(SIZE, crf=crf)).crf_in_threads is threads


@pytest.mark.parametrize("backend, share, most", [
    ("torch", 0.25, 3), ("torch", 1e-9, 1), ("pydensecrf", 0.25, 1)
])
def test_crfs_at_a_time(tmp_path, network, monkeypatch, backend, share, most):
    gate, lock, running, seen = threading.Barrier(most), threading.Lock(), 0, 0

    def fake(image, probabilities, **options):
        nonlocal running, seen
        with lock:
            running += 1
            seen = max(seen, running)
        gate.wait(5)  # all that may run at a time do
        time.sleep(0.02)
        with lock:
            running -= 1
        return probabilities

    monkeypatch.setattr(segmenter, "dense_crf", fake)
    monkeypatch.setattr(segmenter, "CRF_MEMORY", share)
    for k in range(6):
        save(tmp_path / f"in/{k}.png")
    settings = Settings(16, crf=CrfSettings(1, (1.0, 1.0), (4.0, 20.0, 10.0), backend))
    jobs = plan(str(tmp_path / "in"), str(tmp_path / "out"))
    outcomes = list(segment_files(network, jobs, settings, workers=3))
    assert [outcome.error for outcome in outcomes] == 6 * [None] and seen == most


def test_crf_of_large_images_is_computed_smaller(tmp_path, network, monkeypatch):
    sizes = []

    def fake(image, probabilities, **options):
        sizes.append((image.shape, tuple(probabilities.shape)))
        return probabilities

    monkeypatch.setattr(segmenter, "dense_crf", fake)
    path = save_smooth(tmp_path / "a.png", (90, 60))
    settings = Settings(SIZE, (1.0,), False, max_size=45, crf=CRF)
    _, results = run(network, path, tmp_path / "out", settings)
    assert sizes == [((30, 45, 3), (4, 30, 45))] and read(results["mask"]).shape == (60, 90)


def test_crf_needs_two_classes(tmp_path, network):
    path = save_smooth(tmp_path / "a.png")
    settings = Settings(SIZE, (1.0,), False, crf=CRF)
    outcomes, results = run(network, path, tmp_path / "out", settings, labels_of=lambda _: [])
    assert outcomes[0].error is None and not read(results["mask"]).any()


def test_crf_on_the_cpu_overlaps_with_the_network(tmp_path, network, monkeypatch):
    """The CRF of the first image ends only when the network has seen the second."""
    second = threading.Event()
    calls = []
    real = segmenter.multi_scale

    def counting(*arguments):
        calls.append(len(calls))
        if len(calls) == 2:
            second.set()
        return real(*arguments)

    def waiting(image, probabilities, **options):
        assert second.wait(20)
        return probabilities

    monkeypatch.setattr(segmenter, "multi_scale", counting)
    monkeypatch.setattr(segmenter, "dense_crf", waiting)
    for k in range(2):
        save(tmp_path / f"in/{k}.png")
    settings = Settings(16, (1.0,), False, crf=CRF)
    outcomes, _ = run(network, tmp_path / "in", tmp_path / "out", settings, batch_size=1)
    assert [outcome.error for outcome in outcomes] == [None, None]


def test_crf_with_impossible_parameters_fails_image_by_image(tmp_path, network, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("too small a deviation")

    monkeypatch.setattr(segmenter, "dense_crf", refuse)
    path = save_smooth(tmp_path / "a.png")
    outcomes, results = run(network, path, tmp_path / "out", Settings(SIZE, crf=CRF))
    assert "too small a deviation" in str(outcomes[0].error)
    assert not results["mask"].exists()


@pytest.mark.parametrize("crf", [None, CRF])
def test_images_in_memory_do_not_grow_with_the_folder(tmp_path, network, monkeypatch, crf):
    """Between the first reading and the last writing of an image, few others are begun."""
    path = save(tmp_path / "a.png")
    lock, read_so_far, written, most = threading.Lock(), 0, 0, 0
    real_read, real_write = pipeline.open_image, outputs.write

    def counting_read(source, reading):
        nonlocal read_so_far, most
        with lock:
            read_so_far += 1
            most = max(most, read_so_far - written)
        return real_read(source, reading)

    def slow_write(*arguments):
        nonlocal written
        time.sleep(0.005)
        real_write(*arguments)
        with lock:
            written += 1

    monkeypatch.setattr(pipeline, "open_image", counting_read)
    monkeypatch.setattr(outputs, "write", slow_write)
    monkeypatch.setattr(segmenter, "dense_crf", lambda image, probabilities, **_: probabilities)
    jobs = (Job("a.png", path, {"mask": tmp_path / f"out/{k}.png"}) for k in range(120))
    settings = Settings(16, (1.0,), False, crf=crf)
    results = segment_files(network, jobs, settings, batch_size=4, workers=2)
    assert sum(outcome.error is None for outcome in results) == 120
    # The batch, those read ahead, those being written, and those in the CRF.
    assert most <= 4 + (4 + 2) + 2 * 2 + 1 + (3 if crf else 0)


def test_seconds_are_of_the_work_on_the_image(tmp_path, network, monkeypatch):
    real = outputs.write

    def slow_write(job, *arguments):
        time.sleep(0.2 if job.name == "1.png" else 0)
        real(job, *arguments)

    monkeypatch.setattr(outputs, "write", slow_write)
    for k in range(3):
        save(tmp_path / f"in/{k}.png")
    outcomes, _ = run(network, tmp_path / "in", tmp_path / "out", Settings(16))
    seconds = [outcome.seconds for outcome in outcomes]
    assert seconds[1] > 0.2 > max(seconds[0], seconds[2]) > min(seconds) > 0


def test_out_of_memory_is_told(tmp_path, network, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(segmenter, "multi_scale", fail)
    save(tmp_path / "a.png")
    jobs = plan(str(tmp_path / "a.png"), tmp_path / "out")
    with pytest.raises(CannotGoOn, match="lower --batch-size or --size"):
        list(segment_files(network, jobs, Settings(16)))
    with pytest.raises(CannotGoOn, match="lower --batch-size, --window or --max-size"):
        list(segment_files(network, jobs, Settings(16, mode="slide")))
    monkeypatch.setattr(segmenter, "network_input", fail)
    (outcome,) = segment_files(network, jobs, Settings(16))
    assert str(outcome.error).endswith("lower --workers or --size, or shrink the image")


def test_read_back(tmp_path):
    for name, value in (("a", 2), ("b", 9)):
        save(tmp_path / f"in/{name}.jpg", (4, 2))
        (tmp_path / "out").mkdir(exist_ok=True)
        mask = np.array([[0, 0, 0, value], [0, 0, value, value]], np.uint8)
        Image.fromarray(mask).save(tmp_path / f"out/{name}.png")
    a, b = read_back(plan(str(tmp_path / "in"), tmp_path / "out"), 3)
    assert a.skipped and a.size == (2, 4) and a.error is None
    assert [(f.label, f.share, f.probability) for f in a.found] == [
        (0, 0.625, None), (2, 0.375, None)
    ]
    assert "the mask holds the value 9" in str(b.error) and b.found is None


def test_settings_name_what_a_kind_of_file_depends_on():
    settings = Settings(SIZE, threshold=0.4, crf=CRF)
    of = {kind: settings.of(kind) for kind in ("mask", "overlay", "cam", "cpl", "probabilities")}
    assert of["mask"] == of["overlay"] and of["mask"]["crf"]["iterations"] == 2
    assert of["mask"]["max-size"] == 1024 and "window" not in of["mask"]
    assert of["cam"] == of["probabilities"] and of["cam"]["crf"] is None
    assert of["cpl"] == of["cam"] | {"threshold": 0.4}
    slide = Settings(SIZE, mode="slide").of("cam")
    assert {"window", "stride", "max-size"} <= set(slide) and "size" not in slide
    for content in (*of.values(), slide):
        json.dumps(content)
    strict = replace(settings, min_class_score=0.2)
    for kind in of:
        if kind in ("cam", "cpl"):
            assert strict.of(kind) == of[kind]
        else:
            assert strict.of(kind) == of[kind] | {"min-class-score": 0.2}
        known = replace(strict, labels="digest")
        assert known.of(kind) == replace(settings, labels="digest").of(kind)
    assert replace(settings, min_class_score=0.0).of("mask") == of["mask"], "as earlier records"
