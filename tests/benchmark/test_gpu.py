import json

import pytest
import torch

from cosa.benchmark.timings import gpu
from cosa.core.errors import UserError

FACTS = {"command": "python", "date": "2026-01-01", "machine": "a GPU", "revision": "revision abc"}

TRAIN = {
    "seconds_per_iteration": 0.025, "images_per_second": 160.0, "flops_per_step": 7e12,
    "utilisation": 0.28, "memory_bytes": 3 * 2**30, "reserved_bytes": 4 * 2**30,
    "schedule_hours": 0.25, "phases": {"teacher": 0.015, "student": 0.002},
    "comparison": {"ours": 0.025, "baseline": 0.25},
    "kernels": [{"name": "gemm", "milliseconds": 9.0, "count": 100.0}],
}
CRF = {
    "size": [500, 375], "images": 1, "repeats": 2, "left_out": [],
    "results": [{
        "classes": 21, "iterations": 1, "noticeable": 6.0, "ratio": 30.0, "agreement": 0.999,
        "gain": 1.1, "same_with_every_class": 1.0, "changed": 0.05,
        "milliseconds": {name: {"median": 3.0, "iqr": 0.1}
                         for name in ("torch", "torch, every class", "pydensecrf")},
    }],
}


@pytest.fixture
def machine(monkeypatch):
    """A machine that has a CUDA device, whose parts are what a test says."""
    made, figures = [], {"train": TRAIN, "crf": CRF, "channels": {"milliseconds": {"1": 0.5}}}
    failing = set()

    def run(part, name, folder, photos, limit):
        made.append(name)
        if name in figures and name not in failing:
            (folder / f"{name}.json").write_text(json.dumps(figures[name]))
        (folder / f"{name}.log").write_text("== 7 passed in 1 s ==\n")
        return {"exit": 2 if name in failing else 0, "seconds": 1.5}

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "choose_device", lambda name: torch.device("cpu"))
    return made, failing


def test_it_needs_a_cuda_device(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="no CUDA device"):
        gpu.main(["--output", str(tmp_path), "--report", str(tmp_path / "r.md")])


def test_all_parts_run_in_order_and_the_report_grows(tmp_path, machine):
    made, failing = machine
    failing.add("inference")
    arguments = ["--output", str(tmp_path / "gpu"), "--report", str(tmp_path / "r.md")]
    assert gpu.main(arguments) == 1
    assert made == list(gpu.PARTS) and made[0] == "tests" and made[2] == "train"
    report = (tmp_path / "r.md").read_text()
    assert "Failed: inference (2)." in report and "Tests on CUDA: 7 passed in 1 s." in report
    assert "| by default | 25.0 | 160 | 280 | 28 | 3072 | 4096 | 15.0 |" in report
    assert "10.0 times as long" in report and "| gemm | 9.00 | 100 |" in report
    assert "30.00" in report and "milliseconds by channels: 1: 0.50" in report
    failing.clear()
    assert gpu.main(arguments) == 0
    assert made[len(gpu.PARTS):] == ["inference"], "the others are there"
    assert "Failed" not in (tmp_path / "r.md").read_text()


def test_figures_of_another_revision_are_not_mixed_in(tmp_path, machine):
    arguments = ["--output", str(tmp_path), "--report", str(tmp_path / "r.md"), "--parts", "crf"]
    assert gpu.main(arguments) == 0
    facts = json.loads((tmp_path / "gpu.json").read_text())
    (tmp_path / "gpu.json").write_text(json.dumps(facts | {"revision": "revision other"}))
    with pytest.raises(UserError, match="is of revision other"):
        gpu.main(arguments)
    assert gpu.main([*arguments, "--again"]) == 0


def test_a_part_that_takes_too_long_is_ended(tmp_path):
    part = gpu.Part("sleeping", lambda file, photos: ["-c", "import time; time.sleep(60)"])
    assert gpu.run(part, "sleep", tmp_path, [], 1)["exit"] is None
    part = gpu.Part("failing", lambda file, photos: ["-c", "print('no'); raise SystemExit(3)"])
    assert gpu.run(part, "fail", tmp_path, [], 60)["exit"] == 3
    assert (tmp_path / "fail.log").read_text() == "no\n"


@pytest.mark.parametrize("name", gpu.PARTS)
def test_commands_name_programs_and_files_that_are_there(name, tmp_path):
    command = gpu.PARTS[name].command(tmp_path / f"{name}.json", ["photos"])
    assert command[0] in ("-m", "train.py")
    for word in command:
        if word.startswith("configs/"):
            assert (gpu.PROJECT_FOLDER / word).is_file()
