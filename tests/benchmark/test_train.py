import copy
import json

import pytest
import torch

from cosa.benchmark.timings import channels, kernels, precision
from cosa.benchmark.timings import train as benchmark
from cosa.benchmark.timings.baseline_step import Baseline
from cosa.benchmark.timings.phases import PhaseClock
from cosa.config import load_config
from cosa.core.errors import UserError
from cosa.training.optimizer import build_optimizer, optimizer_step
from tests.helpers.cotraining import build, configuration, make_batch
from tests.helpers.tiny import BENCHMARK_TINY, tiny_tree, write_yaml


@pytest.fixture
def tiny(tmp_path):
    return str(write_yaml(tmp_path / "tiny.yaml", tiny_tree(tmp_path / "runs")))


# Fast and straightforward step


def both(**sections):
    """Our training and the baseline's, with equal weights, and a batch with padding."""
    sections.setdefault("teacher", {"scales": [1.0, 0.5, 1.5], "momentum": 0.5})
    ours = build(**sections)
    baseline = Baseline(copy.deepcopy(ours), configuration(**sections))
    batch = make_batch(4)
    batch["valid"][1, :, :9] = False
    batch["image_labels"][2, 3] = 1
    return ours, baseline, batch


def steps(ours, baseline, batch, count):
    """The losses of ``count`` iterations of each."""
    options, total = baseline.config.optimizer, baseline.config.train.iterations
    optimizer = build_optimizer(ours.online, options)
    for iteration in range(count):
        optimizer.zero_grad()
        loss, terms = ours.step(batch, iteration)
        optimizer_step(optimizer, loss, options, iteration, total)
        ours.update_assignment(iteration)
        yield (
            {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}},
            baseline.step(batch, iteration),
        )


@pytest.mark.parametrize("raw", [True, False])
def test_the_fast_step_is_the_straightforward_one(raw):
    ours, baseline, batch = both(
        threshold={"dynamic": False, "fixed": 0.4}, optimizer={"clip_norm": 1.0},
        method={"cls_iterations": 1, "s2c_start": 2, "raw": raw},
    )
    for fast, plain in steps(ours, baseline, batch, 4):
        assert fast == pytest.approx(plain, rel=2e-4, abs=1e-6)
    assert set(fast) == {"loss", "cls", "cls_aux", "c2s", "c2s_aux", "s2c", "csc"}
    for mine, theirs in ((ours.online, baseline.online),
                         (ours.assignment.network, baseline.assignment)):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(a, b, atol=2e-4), "the weights went apart"


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
def test_both_fit_the_same_threshold(smoothing):
    ours, baseline, _ = both(threshold={"smoothing": smoothing})
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        low = 0.3 + 0.08 * torch.randn(3000, generator=generator)
        high = 0.7 + 0.1 * torch.randn(1000, generator=generator)
        confidence = torch.cat([low, high]).clamp(0, 1)
        xi = ours.labeller.thresholds["cam"].update(confidence)
        assert baseline.thresholds["cam"].update(confidence.numpy()) == pytest.approx(xi, abs=3e-3)
    assert 0.48 < xi < 0.6


def test_attention_of_the_baseline_is_not_fused():
    ours, baseline, _ = both()
    assert not any(block.attn.fused_attn for block in baseline.online.encoder.blocks)
    assert all(block.attn.fused_attn for block in ours.online.encoder.blocks)


# The command


def test_the_command_times_every_phase(tiny, tmp_path, capsys):
    report, raw = tmp_path / "report.md", tmp_path / "train.json"
    assert benchmark.main([
        "--config", tiny, "--baseline", "--rounds", "2", "--warm-up", "1", "--json", str(raw),
        "--report", str(report), *BENCHMARK_TINY,
    ]) == 0
    facts = json.loads(raw.read_text())
    assert set(facts["phases"]) == set(benchmark.PHASES)
    assert all(seconds > 0 for seconds in facts["phases"].values())
    assert 0.2 < sum(facts["phases"].values()) / facts["seconds_per_iteration"] < 2
    assert facts["images_per_second"] == pytest.approx(2 / facts["seconds_per_iteration"])
    assert facts["memory_bytes"] > 0 and 0 < facts["utilisation"] < 10
    assert facts["comparison"]["ours"] > 0 and facts["comparison"]["baseline"] > 0
    shown = capsys.readouterr().out
    assert "times as long" in shown and "backward" in shown
    text = report.read_text(encoding="utf-8")
    assert "<!-- train-" in text and "| backward |" in text and "--baseline" in text


def test_flops_are_those_of_teacher_and_student(tiny, tmp_path):
    changed = [*BENCHMARK_TINY, "teacher.scales=[1.0]", "teacher.flip=false"]
    config = load_config(tiny, changed)
    trainer = benchmark.Trainer(config, benchmark.choose_dataset(config, tmp_path))
    one = benchmark.count(trainer.cotraining.online, 48).flops
    assert benchmark.step_flops(trainer) == 2 * (1 + 3) * one


@pytest.mark.parametrize("name, classes", [("voc", 20), ("coco", 80)])
def test_without_a_folder_noise_stands_in(tmp_path, monkeypatch, name, classes):
    monkeypatch.setattr(benchmark, "NOISE_IMAGES", 3)
    dataset = benchmark.choose_dataset(load_config(f"configs/{name}.yaml", []), tmp_path)
    assert dataset.labels.shape == (3, classes) and dataset.image(2).size == (500, 375)
    assert set(dataset.labels.sum(axis=1)) <= {1, 2}


def test_no_rounds_are_a_users_mistake(tiny, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--config", tiny, "--rounds", "0"])
    assert "--rounds: 0: it must lie in 1..1000000" in capsys.readouterr().err


def test_a_phase_lasts_from_mark_to_mark(monkeypatch):
    moments = iter([1.0, 2.0, 5.0, 6.0, 10.0])
    monkeypatch.setattr("cosa.benchmark.timings.phases.time.perf_counter", lambda: next(moments))
    clock = PhaseClock(torch.device("cpu"))
    for phase in ("start", "a", "b", "a", "b"):
        clock.mark(phase)
    assert clock.seconds() == {"a": 1.0, "b": 3.5}


def test_a_phase_of_several_parts_counts_as_a_whole(monkeypatch):
    moments = iter([0.0, 1.0, 3.0, 4.0, 7.0, 7.5, 8.0, 9.0, 10.0, 13.0, 20.0])
    monkeypatch.setattr("cosa.benchmark.timings.phases.time.perf_counter", lambda: next(moments))
    clock = PhaseClock(torch.device("cpu"))
    for phase in ("start", *("a", "b", "a", "b", "end") * 2):
        clock.mark(phase)
    assert clock.seconds() == {"a": 1.75, "b": 4.5, "end": 3.75}


@pytest.mark.parametrize("name, source", [
    ("NVIDIA H100 80GB HBM3", "data sheet"), ("NVIDIA A100-SXM4-40GB", "data sheet"),
    ("NVIDIA RTX A1000", "product"), ("NVIDIA A10G", "product"), ("NVIDIA H100 PCIe", "product"),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", "product"),
])
def test_the_peak_is_that_of_the_very_model(monkeypatch, name, source):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(benchmark, "matmul_rate", lambda device, bf16: 1.0)
    assert source in benchmark.device_peak(torch.device("cuda"), True)[1]


def test_the_baseline_has_no_regularizers():
    with pytest.raises(UserError, match="--baseline"):
        both(regularizers={"fsl": {"weight": 0.1}})


# On a GPU


def test_kernels_have_short_names_in_a_table():
    name = ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, "
            "std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<float>)")
    assert kernels.short(name) == "vectorized_elementwise_kernel CUDA"
    assert kernels.short("nvjet_sm90_tst_192x192_64x4") == "nvjet_sm90_tst_192x192_64x4"
    found = [{"name": f"k{n}", "milliseconds": 1.0, "count": 2.0} for n in range(kernels.SHOWN + 4)]
    table = kernels.kernel_table(found)
    assert table[-2] == ["4 others", "4.00", "8"]
    assert table[-1] == ["all", f"{kernels.SHOWN + 4}.00", f"{2 * (kernels.SHOWN + 4)}"]


def test_a_memory_limit_is_for_a_gpu(tiny):
    with pytest.raises(UserError, match="--memory-limit is for a GPU"):
        benchmark.main(["--config", tiny, "--memory-limit", "8"])


def test_precisions_are_compared_with_float32(tiny, tmp_path, capsys, monkeypatch):
    ways = {"float32": ["train.precision=fp32"], "bf16": ["train.precision=bf16"]}
    monkeypatch.setattr(precision.measure, "__defaults__", (ways,))
    assert precision.main(["--config", tiny, "--json", str(tmp_path / "p.json")]) == 0
    found = json.loads((tmp_path / "p.json").read_text())["ways"]
    assert found["float32"]["gradient"] == 0 and 0 < found["bf16"]["gradient"] < 0.6
    assert found["bf16"]["terms"] == pytest.approx(found["float32"]["terms"], rel=0.2)
    assert "gradient's difference" in capsys.readouterr().out


def test_channels_are_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(channels, "CHANNELS", (1, 4))
    monkeypatch.setattr(channels, "REPEATS", 1)
    file = tmp_path / "channels.json"
    assert channels.main(["--device", "cpu", "--json", str(file)]) == 0
    assert set(json.loads(file.read_text())["milliseconds"]) == {"1", "4"}
