"""Training and inference on a pretended Apple GPU give the results of the CPU, without float64."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import train
from cosa.checkpoint import read as read_checkpoint
from cosa.config import OptimizerConfig
from cosa.core.device import choose_autocast, choose_device, describe
from cosa.core.errors import UserError
from cosa.core.tensors import in_float64
from cosa.crf import dense_crf
from cosa.lattice import filter as lattice
from cosa.training.optimizer import optimizer_step
from cosa.training.run_folder import RunFolder
from infer import main as infer
from tests.helpers.inference import ALL, files, save_smooth
from tests.helpers.tiny import ROOT
from tests.helpers.training import configure, evaluated, training_lines

if torch.backends.mps.is_available():
    pytest.skip("an Apple GPU is there", allow_module_level=True)
try:
    from tests.helpers.pretended_mps import pretended_mps

    with pretended_mps():
        torch.ones(2, device="mps", requires_grad=True).sum().backward()
except (ImportError, AttributeError, TypeError, RuntimeError) as error:
    pytest.skip(f"PyTorch {torch.__version__} lacks what the emulation is made of: {error}",
                allow_module_level=True)


@pytest.fixture
def mps():
    with pretended_mps() as pretended:
        yield pretended


def test_the_device_has_no_float64(mps):
    there = torch.ones(3, device="mps")
    assert there.device == torch.device("mps", 0) and not there.is_cuda
    for make in (there.double, lambda: torch.zeros(2, dtype=torch.float64, device="mps"),
                 lambda: torch.ones(2, dtype=torch.float64).to("mps")):
        with pytest.raises(TypeError, match="float64"):
            make()
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)
    wide = in_float64(there)
    assert wide.device.type == "cpu" and wide.tolist() == [1.0] * 3


def test_it_is_taken_where_it_is_named_alone(mps, capfd):
    assert choose_device("mps") == torch.device("mps")
    assert choose_device("auto") == torch.device("cpu")
    assert capfd.readouterr().err == (
        "note: computing on the CPU; device=mps tries the Apple GPU, which nobody has measured\n")
    assert describe(torch.device("mps"), choose_autocast(torch.device("mps"))) == (
        "the Apple GPU in float32")


@pytest.mark.parametrize("macos, precision", [((14, 0), "bfloat16"), ((13, 3), "float32")])
def test_bfloat16_where_it_is_there(macos, precision):
    with pretended_mps(macos):
        device = torch.device("mps")
        assert describe(device, choose_autocast(device, "bf16")) == f"the Apple GPU in {precision}"


@pytest.mark.parametrize("name", ["mps", "mps:1"])
def test_where_there_is_none(name):
    with pytest.raises(UserError, match=f"'{name}' is not there.*use device=auto or device=cpu"):
        choose_device(name)


def test_a_step_that_is_not_finite_moves_nothing(mps):
    weight = torch.nn.Parameter(torch.ones(2, device="mps"))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr_scale": 1.0}], fused=True)
    for factor in (float("nan"), 1.0):
        optimizer.zero_grad()
        optimizer_step(optimizer, (factor * weight).sum(), OptimizerConfig(), 0, 10)
        assert torch.equal(weight.cpu(), torch.ones(2)) == (factor != 1)


def test_the_lattice_and_the_crf_are_those_of_the_cpu(mps):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (9, 12, 3), generator=generator, dtype=torch.uint8)
    scores = torch.rand(3, 9, 12, generator=generator, dtype=torch.float64).softmax(dim=0)
    expected = dense_crf(image, scores, iterations=2)
    found = dense_crf(image, scores, iterations=2, device="mps")
    assert found.dtype == torch.float64 and not found.is_mps
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    features, group = torch.rand(40, 2, generator=generator), torch.arange(40) % 2
    values = torch.rand(40, 3, generator=generator)
    there = lattice.Lattice(features.to("mps"), group.to("mps")).filter(values.to("mps"))
    torch.testing.assert_close(there.cpu(), lattice.Lattice(features, group).filter(values))


def trained(folder, device):
    config = configure(
        folder, device=device, method={"cls_iterations": 1, "s2c_start": 2},
        train={"iterations": 4, "evaluate_every": 2, "keep_checkpoints": 1},
    )
    assert train.main([config]) == 0
    return RunFolder(folder / "runs" / "tiny")


def test_a_training_is_that_on_the_cpu(tmp_path, capfd):
    expected = trained(tmp_path / "cpu", "cpu")
    capfd.readouterr()
    with pretended_mps():
        run = trained(tmp_path / "mps", "mps")
    assert "training on the Apple GPU in float32" in capfd.readouterr().out
    for mine, theirs in zip(training_lines(run), training_lines(expected), strict=True):
        numbers = {key: value for key, value in theirs.items() if value is not None}
        assert {key: mine[key] for key in numbers} == pytest.approx(numbers, rel=2e-3)
    assert evaluated(run) == [2, 4] and "mps" in read_checkpoint(run.last)["rng"]
    scores, others = (json.loads(r.summary.read_text()) for r in (run, expected))
    for name in ("miou", "cam_miou", "boundary_f", "classification_map"):
        assert scores[name] == pytest.approx(others[name], abs=0.01), name


def test_a_training_goes_on_there(tmp_path):
    with pretended_mps():
        run = trained(tmp_path, "mps")
        torch.rand(7)
        assert train.main(["--resume", str(run.path), "train.iterations=5"]) == 0
    assert [line["iteration"] for line in training_lines(run)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("options", [[], ["--mode", "slide", "--crf"]], ids=" ".join)
def test_inference_is_that_on_the_cpu(tmp_path, weights, options):
    for number in range(2):
        save_smooth(tmp_path / f"in/{number}.png", (40 + 9 * number, 30), seed=number)

    def run(device):
        arguments = [tmp_path / "in", "--weights", weights, "--output", tmp_path / device, *ALL,
                     "--json", tmp_path / f"{device}.json", "--device", device, *options]
        assert infer(list(map(str, arguments))) == 0
        return tmp_path / device

    expected = run("cpu")
    with pretended_mps():
        found = run("mps")
    assert files(found) == files(expected)
    for name in files(expected):
        if name.endswith(".png") and "overlay" not in name:
            labels = np.array(Image.open(expected / name))
            assert (np.array(Image.open(found / name)) == labels).mean() > 0.99


def test_what_the_gpu_lacks_falls_to_the_cpu():
    """PyTorch looks at the variable when it is imported: on a Mac cosa has set it before."""
    code = ("import sys; sys.platform = 'darwin'; import os; import cosa; "
            "assert 'torch' not in sys.modules; print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1\n", done.stderr
