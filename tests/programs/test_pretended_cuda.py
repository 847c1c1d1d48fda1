"""Training and inference on a pretended CUDA device: same results as on the CPU, and no wait that
is not known. What the emulation can show is said in ``pretended_cuda``."""

import json
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import train
from cosa import crf
from cosa.checkpoint import read as read_checkpoint
from cosa.config import from_dict, to_dict
from cosa.core.device import choose_autocast
from cosa.core.tensors import move
from cosa.data import build_dataset
from cosa.data.batches import to_device
from cosa.data.loader import training_loader
from cosa.data.partners import PartnerViews
from cosa.lattice import Lattice
from cosa.regularizers.registry import REGULARIZERS
from cosa.training.build import build_step
from cosa.training.optimizer import build_optimizer, optimizer_step
from cosa.training.run_folder import RunFolder
from cosa.training.step_log import StepLog
from infer import main as infer
from tests.helpers import cotraining as tiny_cotraining
from tests.helpers.cotraining import ON
from tests.helpers.draws import randn
from tests.helpers.inference import ALL, files, save_smooth
from tests.helpers.tiny import ROOT, tiny_tree
from tests.helpers.training import configure, evaluated, stop_after, training_lines

if torch.cuda.is_available():
    pytest.skip("a CUDA device is there, and with it run the tests that need one",
                allow_module_level=True)
try:
    from tests.helpers.pretended_cuda import pretended_cuda
    from tests.helpers.pretended_device import OnCuda

    with pretended_cuda():
        torch.ones(2, device="cuda", requires_grad=True).sum().backward()
except (ImportError, AttributeError, TypeError, RuntimeError) as error:
    pytest.skip(f"PyTorch {torch.__version__} lacks what the emulation of CUDA is made of: "
                f"{error}", allow_module_level=True)

THRESHOLD = ("synchronize", "threshold._take")
"""Before the threshold is fitted; the device is busy with the online network then."""

WAITS = {
    "isl": set(),
    "fsl": set(),
    "plda": set(),
    # Which partners' objects show.
    "csd": {("nonzero", "semantic_decoupling.forward")},
    "plca": set(),
    # Which range the lattice spans, and how many of its points exist.
    "dense_energy": {
        ("copy to the CPU", "points._ranges"),
        ("unique_consecutive", "filter._connect"),
    },
}
"""Where the host waits in a step with this regularizer, beside the threshold."""

CSD_AND_PLCA = {("nonzero", "cycle_association.pair_terms")}
"""With both: which images have a source, as some of these are partners."""


@pytest.fixture
def cuda():
    with pretended_cuda() as pretended:
        yield pretended


# The emulation


def test_devices_do_not_mix(cuda):
    here, there = torch.ones(2, 2), torch.ones(2, 2, device="cuda")
    assert there.device == torch.device("cuda", 0) and there.is_cuda and not here.is_cuda
    for mix in (
        lambda: there + here, lambda: here @ there, lambda: torch.cat([there, here]),
        lambda: F.linear(there, here), lambda: here.add_(there), lambda: here[there.long()],
        lambda: torch.stack([there[0, 0], here[0, 0]]), lambda: torch.where(there > 0, there, here),
        lambda: there.index_select(0, torch.tensor([0])), lambda: there[:, 0].dot(here[:, 0]),
        lambda: torch.zeros(()).add_(there[0, 0]), lambda: there.masked_fill(here > 0, 1),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mix()
    for convert in (there.numpy, lambda: np.asarray(there)):
        with pytest.raises(TypeError, match="numpy"):
            convert()
    with pytest.raises(RuntimeError, match="pin"):
        there.pin_memory()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, device="cuda", generator=torch.Generator())


def test_scalars_of_the_cpu_mix_in(cuda):
    there, two = torch.ones(3, device="cuda"), torch.tensor(2.0)
    results = [there * two, two * there, torch.where(there > 0, two, there), there + 1,
               there.clone().mul_(two), there.masked_fill(there > 0, two)]
    there[1:2] = two
    assert all(result.is_cuda for result in results) and cuda.waits == []
    assert [result.cpu().tolist() for result in results] == [[2.0] * 3] * len(results)
    assert there.tolist() == [1.0, 2.0, 1.0]


@pytest.mark.parametrize("operation, wait", [
    ("item", lambda x: x[0].item()),
    ("item", lambda x: bool((x > 0).all())),
    ("item", lambda x: int(x.sum())),
    ("item", lambda x: x.isfinite().all() and None),
    ("copy to the CPU", lambda x: x.cpu()),
    ("copy to the CPU", lambda x: x.to("cpu")),
    ("copy to the CPU", lambda x: x.tolist()),
    ("copy to the CPU", lambda x: torch.empty(3).copy_(x)),
    ("copy to CUDA", lambda x: torch.ones(3).to(x.device)),
    ("copy to CUDA", lambda x: torch.ones(3).pin_memory().cuda()),
    ("copy to CUDA", lambda x: torch.tensor([1, 2], device="cuda")),
    ("copy to CUDA", lambda x: x.new_tensor([1.0])),
    ("copy to CUDA", lambda x: x.copy_(torch.ones(3))),
    ("copy of memory that is not pinned", lambda x: torch.ones(3).to(x, non_blocking=True)),
    ("nonzero", lambda x: x.nonzero()),
    ("nonzero", lambda x: torch.where(x > 0)),
    ("masked_select", lambda x: x.masked_select(x > 0)),
    ("index by a mask", lambda x: x[x > 0]),
    ("index from the CPU", lambda x: x[torch.tensor([0, 1])]),
    ("unique_consecutive", lambda x: x.unique_consecutive()),
    ("bincount", lambda x: x.long().bincount()),
    ("repeat_interleave", lambda x: x.repeat_interleave(x.long())),
    ("equal", lambda x: torch.equal(x, x)),
    ("synchronize", lambda x: torch.cuda.synchronize()),
    ("synchronize", lambda x: torch.cuda.Event().synchronize()),
    ("synchronize", lambda x: torch.cuda.current_stream().synchronize()),
])
def test_waits_are_noted(cuda, operation, wait):
    x = torch.arange(3.0).pin_memory().to("cuda", non_blocking=True)
    assert cuda.waits == []
    wait(x)
    assert [(w.operation, w.function) for w in cuda.waits] == [
        (operation, "test_pretended_cuda.<lambda>")
    ]
    file, line = cuda.waits[0].place.split(":")
    assert file == "tests/programs/test_pretended_cuda.py"
    assert "lambda x:" in (ROOT / file).read_text().splitlines()[int(line) - 1]


def test_what_needs_no_wait_is_not_noted(cuda):
    x = torch.rand(4, 5, pin_memory=True).to("cuda", non_blocking=True)
    x[x > 0.5] = 0
    x[0] = 1
    x[torch.arange(4, device="cuda"), 0] = 2
    torch.cuda.Event().record(torch.cuda.current_stream())
    (x.sort(dim=1).values, x[:, x[0].argsort()], torch.zeros(3, device=x.device), x.clone())
    kept = x.to("cpu", non_blocking=True)
    assert cuda.waits == [] and not kept.is_cuda and kept.tolist()[0][0] == 2


def test_values_and_gradients_are_those_of_the_cpu(cuda):
    generator = torch.Generator().manual_seed(0)
    images, weight = torch.rand(2, 3, 8, 8, generator=generator), torch.rand(5, 3, 3, 3)

    def results(device):
        x, w = (t.to(device).requires_grad_() for t in (images, weight))
        y = F.interpolate(F.conv2d(x, w).relu(), (9, 9), mode="bilinear").softmax(dim=1)
        y = y.clone()
        y[:, 0, 2:4] *= 2
        loss = -(y.amax(dim=1) + 1e-3).log().mean() + y[0].masked_fill(y[0] > 0.5, 0).sum()
        loss.backward()
        return [t.detach().cpu() for t in (loss, y, x.grad, w.grad)]

    for found, expected in zip(results("cuda"), results("cpu"), strict=True):
        assert torch.equal(found, expected)


def test_autocast_has_the_dtypes_of_cuda(cuda):
    x = torch.rand(2, 4, device="cuda")
    with choose_autocast(torch.device("cuda"))():
        half = F.linear(x, x)
        assert half.dtype == (x @ x.T).dtype == torch.bfloat16
        for result in (half.softmax(dim=0), half.exp(), half.sum(), F.layer_norm(half, (2,))):
            assert result.dtype == torch.float32
        maps = half[None, None]
        assert F.interpolate(maps, (1, 1), mode="area").dtype == torch.bfloat16
        assert F.interpolate(maps, (4, 4), mode="bilinear").dtype == torch.float32
        assert (half + half).dtype == half.relu().dtype == torch.bfloat16
        with torch.autocast("cuda", enabled=False):
            assert F.linear(x, x).dtype == torch.float32
    assert F.linear(x, x).dtype == torch.float32


def test_nothing_is_left_behind():
    before = torch.autocast, torch.cuda.Event, torch.cuda.is_available()
    with pretended_cuda():
        assert torch.cuda.is_available()
        with torch.inference_mode():
            assert not torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert (torch.autocast, torch.cuda.Event, torch.cuda.is_available()) == before
    with torch.inference_mode():
        assert torch.is_inference_mode_enabled()
    assert type(torch.ones(1) + 1) is torch.Tensor
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(1, device="cuda")


def test_constants_and_decisions_of_the_host_are_moved_without_a_wait(cuda, batch):
    batch = {key: value.pin_memory() for key, value in batch.items()}
    mean = torch.full((3, 1, 1), 0.25, device="cuda")
    cuda.waits.clear()
    moved = to_device(batch, "cuda", mean)
    assert move(torch.ones(2), torch.device("cuda")).is_cuda and cuda.waits == []
    assert move(moved["valid"], torch.device("cpu")).dtype == torch.bool
    assert [wait.operation for wait in cuda.waits] == ["copy to the CPU"], "it must be complete"
    here = {key for key, value in moved.items() if not value.is_cuda}
    assert here == {"partner_class", "host_labels"}
    assert "host_labels" not in to_device(batch, "cpu", torch.zeros(3, 1, 1))


# The lattice and the CRF, which take other ways on CUDA


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.5, 20.0])
def test_a_lattice_is_that_of_the_cpu(cuda, dtype, spread):
    features, values = spread * randn(150, 3).to(dtype), randn(150, 4, seed=1).to(dtype)
    group = torch.arange(150) % 2
    here = Lattice(features, group).normalized()
    there = Lattice(features.cuda(), group.cuda()).normalized()
    for name in ("_slice_rows", "_splat_rows", "_splat_ends", "_blur_rows"):
        assert torch.equal(getattr(there, name).cpu(), getattr(here, name)), name
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = there.filter(values.cuda())
    assert found.dtype == dtype
    torch.testing.assert_close(found.cpu(), here.filter(values))
    for x in (ours := values.clone().requires_grad_(), theirs := values.cuda().requires_grad_()):
        ((here if x is ours else there).filter(x) ** 2).sum().backward()
    torch.testing.assert_close(theirs.grad.cpu(), ours.grad)


def test_a_crf_waits_for_what_it_keeps_and_for_the_lattice(cuda):
    crf._kept_kernel.cache_clear()
    image, p = (255 * torch.rand(30, 40, 3)).byte(), torch.rand(5, 30, 40).softmax(dim=0)
    found, waits = [], []
    for _ in range(2):
        given = image.cuda(), p.cuda()
        cuda.waits.clear()
        found.append(crf.dense_crf(*given, negligible=1.1).cpu())
        waits.append([(wait.operation, wait.function) for wait in cuda.waits][:-1])
    lattice = [("copy to the CPU", "points._ranges"), ("unique_consecutive", "filter._connect")]
    assert waits[1] == [("copy to the CPU", "crf._mean_field"), *lattice]
    assert waits[0] == [*waits[1], *lattice], "that of position, too"
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], crf.dense_crf(image, p, negligible=1.1))


# Training


@pytest.fixture(scope="module")
def batch():
    """Eight scenes, some with the partners that CSD asks for, as the loader gives them."""
    config = from_dict(tiny_tree(data={"scenes_train": 60}))
    (only,) = training_loader(
        build_dataset(config.data, "train"), batch_size=8, seed=1, iterations=1, workers=0,
        stream=PartnerViews, **to_dict(config.augment),
    )
    assert (only["partner_class"] >= 0).any() and (only["partner_class"] < 0).any()
    return only


def run_steps(device, batch, precision="fp32", **sections):
    """Two steps of training: the loss and the terms of each, the weights, the second's waits."""
    cotraining = tiny_cotraining.build(choose_autocast(device, precision), classes=7, **sections)
    for module in (cotraining.online, cotraining.assignment, cotraining.regularizers):
        module.to(device)
    options = from_dict(tiny_tree(**sections)).optimizer
    optimizer = build_optimizer(cotraining.online, options, cotraining.regularizers)
    step, log, results = build_step(cotraining), StepLog(), []
    torch.manual_seed(5)
    for iteration in range(2):
        OnCuda.noted.waits.clear()  # the first step caches constants on the device
        moved = to_device(batch, device, cotraining.online.mean)
        optimizer.zero_grad()
        loss, terms = step(moved, iteration)
        _, norm = optimizer_step(optimizer, loss, options, iteration, 10)
        log.add(iteration, loss, norm, terms, batch["index"])
        cotraining.update_assignment(iteration)
        results.append({"loss": loss, "norm": norm, **terms})
    waits = [(wait.operation, wait.function) for wait in OnCuda.noted.waits]
    values = [{name: value.item() for name, value in result.items()} for result in results]
    weights = {k: v.cpu() for k, v in cotraining.assignment.network.state_dict().items()}
    return values, weights, waits


def run_steps_on_cuda(batch, *arguments, **sections):
    with pretended_cuda():
        pinned = {key: value.pin_memory() for key, value in batch.items()}  # as the loader does
        return run_steps(torch.device("cuda"), pinned, *arguments, **sections)


def assert_like_the_cpu(batch, tolerance=1e-5, **options):
    """Run two steps on both devices, compare, and return the waits on CUDA."""
    expected, expected_weights, _ = run_steps(torch.device("cpu"), batch, **options)
    found, weights, waits = run_steps_on_cuda(batch, **options)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance, abs=tolerance)
    for name, value in expected_weights.items():
        torch.testing.assert_close(
            weights[name], value, rtol=tolerance, atol=10 * tolerance, msg=name
        )
    return waits


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-5), ("bf16", 0.05)])
def test_a_step_waits_for_nothing_but_the_thresholds(batch, precision, tolerance, parts):
    waits = assert_like_the_cpu(
        batch, tolerance, precision=precision, train={"accumulate": parts}
    )
    assert waits == [THRESHOLD] * 2  # that of M' and that of the auxiliary M'


@pytest.mark.parametrize("names", [*((name,) for name in REGULARIZERS), tuple(REGULARIZERS)],
                         ids="+".join)
def test_each_regularizer_waits_where_it_is_known_to(batch, names):
    if "csd" not in names:
        batch = {key: value for key, value in batch.items() if not key.startswith("partner")}
    waits = assert_like_the_cpu(batch, regularizers={name: ON[name] for name in names})
    known = {THRESHOLD}.union(*(WAITS[name] for name in names))
    assert set(waits) == (known | CSD_AND_PLCA if {"csd", "plca"} <= set(names) else known)
    assert len(waits) == 2 + len(set(waits) - {THRESHOLD}), "each waits once, the threshold twice"


def test_all_regularizers_in_bfloat16(batch):
    values, _, waits = run_steps_on_cuda(batch, "bf16", regularizers=ON)
    assert set(waits) == {THRESHOLD}.union(CSD_AND_PLCA, *WAITS.values())
    assert all(np.isfinite(value) for result in values for value in result.values())


# Programs


def stopped_and_resumed(folder, device, monkeypatch):
    config = configure(
        folder, device=device, method={"cls_iterations": 1, "s2c_start": 2},
        train={"iterations": 6, "evaluate_every": 3, "precision": "fp32",
               "cuda_graphs": False},
    )
    run = RunFolder(folder / "runs" / "tiny")
    with monkeypatch.context() as patch:
        stop_after(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train.main([config]) == 128 + signal.SIGTERM
    torch.rand(7)  # the global generator is elsewhere now
    assert train.main(["--resume", str(run.path)]) == 0
    return run


def test_a_training_is_that_on_the_cpu(tmp_path, monkeypatch):
    expected = stopped_and_resumed(tmp_path / "cpu", "cpu", monkeypatch)
    with pretended_cuda() as pretended:
        run = stopped_and_resumed(tmp_path / "cuda", "cuda", monkeypatch)
    assert pretended.waits
    for mine, theirs in zip(training_lines(run), training_lines(expected), strict=True):
        assert {k for k in mine if mine[k] is None} == {k for k in mine if theirs[k] is None}
        numbers = {key: value for key, value in theirs.items() if value is not None}
        assert {key: mine[key] for key in numbers} == pytest.approx(numbers, rel=2e-3)
    assert evaluated(run) == [3, 6] and sorted(run.panels.iterdir())
    weights, theirs = (read_checkpoint(r.last)["assignment"] for r in (run, expected))
    for name, value in weights.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=5e-4, msg=name)
    scores, others = (json.loads(r.summary.read_text()) for r in (run, expected))
    for name in ("miou", "cam_miou", "boundary_f", "classification_map"):
        assert scores[name] == pytest.approx(others[name], abs=0.01), name


@pytest.mark.parametrize("options", [[], ["--crf"], ["--mode", "slide", "--crf"]], ids=" ".join)
def test_inference_is_that_on_the_cpu(tmp_path, weights, options):
    for number in range(3):
        save_smooth(tmp_path / f"in/{number}.png", (40 + 9 * number, 30), seed=number)

    def run(device):
        arguments = [tmp_path / "in", "--weights", weights, "--output", tmp_path / device, *ALL,
                     "--device", device, *options]
        assert infer(list(map(str, arguments))) == 0
        return tmp_path / device

    expected = run("cpu")
    with pretended_cuda() as pretended:
        found = run("cuda")
    assert pretended.waits
    assert files(found) == files(expected)
    classes = set()
    for name in files(expected):
        mine, theirs = found / name, expected / name
        if name.endswith(".regions.npz"):  # of masks that differ in some pixels
            with np.load(mine) as arrays, np.load(theirs) as others:
                assert set(arrays["classes"]) == set(others["classes"])
                assert arrays["scores"].mean() == pytest.approx(others["scores"].mean(), abs=0.02)
        elif name.endswith(".npz"):
            with np.load(mine) as arrays, np.load(theirs) as others:
                for key in others:
                    np.testing.assert_allclose(arrays[key], others[key], atol=2e-3)
        elif name.endswith(".png") and "overlay" not in name:
            labels = np.array(Image.open(theirs))
            assert (np.array(Image.open(mine)) == labels).mean() > 0.99
            classes.update(np.unique(labels).tolist())
    assert len(classes) > 1, "masks of a single class would agree whatever is wrong"
