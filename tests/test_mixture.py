"""The fit of Eq. (6) in one kernel of a GPU, against that of the host."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cosa.core.errors import NotFiniteError
from cosa.core.files import PROJECT_FOLDER
from cosa.mixture import LEVELS
from cosa.threshold import DynamicThreshold
from cosa.training import build
from cosa.training.build import fit_on_gpu

OPTIONS = {"queue_length": 3, "smoothing": 0.5}


def batches(seed, count=6):
    """Confidences of batches: two clusters of all sorts, some of few samples or a single value."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        size = int(rng.choice([3, 20, 400, 3000]))
        first = rng.random(size) < rng.uniform(0.02, 0.7)
        low, high = rng.uniform(0.1, 0.4), rng.uniform(0.35, 0.9)
        values = np.where(first, rng.normal(high, rng.uniform(0.001, 0.2), size),
                          rng.normal(low, rng.uniform(0.001, 0.2), size))
        yield torch.from_numpy(np.full(size, 0.3) if number == 1 else values.clip(0, 1))


def compare(fit_of, floor, seed):
    """Push the same batches into both; their thresholds, and whether the queues are equal."""
    host = DynamicThreshold(**OPTIONS, variance_floor=floor)
    device = fit_of(0.5, torch.zeros(0, LEVELS, dtype=torch.int32), 3, 0.5, floor)
    for batch in batches(seed):
        counts = host.count(batch)
        host.push_counts(counts)
        device.push(counts.to(device.xi.device))
        assert device.read() == (pytest.approx(host.value, abs=1e-8), 0)
        assert float(device.xi) == pytest.approx(host.value, abs=1e-6)
    assert torch.equal(device.rows(), host.state_dict()["histograms"])
    return device


def interpreted():
    """What the test below runs, Triton's kernels being interpreted on the CPU."""
    from cosa.mixture.device import DeviceFit

    def fit_of(*state):
        return DeviceFit(*state, torch.device("cpu"))

    for floor in (1e-4, 0.02):
        for seed in range(4):
            device = compare(fit_of, floor, seed)
    value, rows = device.read()[0], device.rows()
    missing = torch.zeros(LEVELS + 2, dtype=torch.int64)
    missing[0], missing[-1] = 100, 2
    device.push(missing)
    assert torch.isnan(device.xi)
    assert device.read() == (value, 2) and device.read() == (value, 0)
    assert torch.equal(device.rows(), rows)
    again, counts = fit_of(value, rows, 3, 0.5, 0.02), missing.clone()
    counts[-1] = 0
    for fit in (device, again):
        fit.push(counts)
    assert again.read() == device.read() and torch.equal(again.rows(), device.rows())


def test_the_kernel_fits_what_the_host_fits():
    pytest.importorskip("triton")
    code = "from tests.test_mixture import interpreted; interpreted()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_FOLDER, capture_output=True, text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr


def test_the_kernel_compiles():
    """For two generations of GPUs, none of which need be there."""
    compiler = pytest.importorskip("triton.compiler")
    backends = pytest.importorskip("triton.backends.compiler")
    from cosa.mixture import device

    # Found out by the first launch alone: Triton's launcher has an argument of that name.
    assert "options" not in device.update.arg_names
    constants = {"LEVELS": LEVELS, "BLOCK": 512, "MAX_STEPS": 50, "MIN_SAMPLES": 16,
                 "BISECTIONS": 50}
    signature = {"counts": "*i64", "ring": "*i32", "total": "*i64", "state": "*fp64",
                 "numbers": "*fp64", "xi": "*fp32", "length": "i32",
                 **dict.fromkeys(constants, "constexpr")}
    for generation in (75, 90):
        source = compiler.ASTSource(device.update, signature, constants)
        target = backends.GPUTarget("cuda", generation, 32)
        made = pytest.importorskip("triton").compile(source, target)
        assert made.asm["cubin"]


def test_without_a_device_the_host_fits():
    asked = []
    threshold = DynamicThreshold(**OPTIONS, on_gpu=lambda *given: asked.append(given))
    threshold.update(torch.rand(100))
    assert not asked and isinstance(threshold.newest, float)


def test_where_triton_fails_the_host_fits_and_it_is_told_once(monkeypatch, capsys):
    device = pytest.importorskip("cosa.mixture.device")

    def broken(*given):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(device, "DeviceFit", broken)
    build._device_fit.cache_clear()
    try:
        state = (0.5, torch.zeros(0, LEVELS, dtype=torch.int32), 3, 0.5, 1e-4, torch.device("cpu"))
        assert build.fit_on_gpu(*state) is None and build.fit_on_gpu(*state) is None
    finally:
        build._device_fit.cache_clear()
    assert capsys.readouterr().err.count("no C compiler") == 1


@pytest.mark.cuda
def test_on_a_gpu_the_host_waits_for_nothing():
    threshold = DynamicThreshold(**OPTIONS, on_gpu=fit_on_gpu)
    host = DynamicThreshold(**OPTIONS)
    seen = [batch.float() for batch in batches(0)]
    moved = [batch.cuda() for batch in seen]
    threshold.push(moved[0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in moved[1:]:
            threshold.push(batch)
        newest = threshold.newest
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch in seen:
        host.update(batch)
    assert newest.is_cuda and float(newest) == pytest.approx(host.value, abs=1e-6)
    state = threshold.state_dict()
    assert state["value"] == pytest.approx(host.value, abs=1e-8)
    assert torch.equal(state["histograms"], host.state_dict()["histograms"])
    resumed = DynamicThreshold(**OPTIONS, on_gpu=fit_on_gpu)
    resumed.load_state_dict(state)
    for one in (threshold, resumed):
        one.push(moved[2])
    assert resumed.value == threshold.value
    threshold.push(moved[0].clone().fill_(torch.nan))
    with pytest.raises(NotFiniteError, match="of the last steps are NaN"):
        _ = threshold.value
    assert threshold.value == resumed.value


@pytest.mark.cuda
def test_the_kernel_fits_on_a_gpu_what_the_host_fits():
    for floor in (1e-4, 0.02):
        for seed in range(8):
            compare(lambda *state: fit_on_gpu(*state, torch.device("cuda")), floor, seed)
