"""Two processes (gloo, on the CPU) do what one does. All scenarios share one pair of processes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

import infer
import train
from cosa.checkpoint import read
from cosa.core import distributed
from cosa.core.errors import UserError
from cosa.inference.jobs import share
from cosa.threshold import DynamicThreshold
from tests.helpers import distributed_pair as pair
from tests.helpers.inference import save, save_smooth, write_weights
from tests.helpers.tiny import ROOT

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs gloo"
)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def environment(**own):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | own


def write_images(folder):
    """Five images, one of them broken and one without a mask, and the weights."""
    write_weights(folder / "weights.pth")
    for k in range(5):
        save_smooth(folder / "images" / f"{k}.png", seed=k)
        if k != 3:
            (folder / "truth").mkdir(exist_ok=True)
            mask = np.random.default_rng(k).integers(0, 4, (30, 40), np.uint8)
            Image.fromarray(mask).save(folder / "truth" / f"{k}.png")
    save(folder / "images" / "1.png").write_bytes(b"no image")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder that the two processes worked in, and the results of either."""
    folder = tmp_path_factory.mktemp("pair")
    write_images(folder)
    ports = map(str, free_ports(len(pair.SCENARIOS)))
    script = ROOT / "tests" / "helpers" / "distributed_pair.py"
    command = [sys.executable, str(script), str(folder), *ports]
    errors = [open(folder / f"stderr{rank}", "w+") for rank in range(2)]
    running = [
        subprocess.Popen(command, stderr=errors[rank], stdout=subprocess.DEVNULL, env=environment(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            # Sets of strings have another order in either: nothing may be exchanged in theirs.
            PYTHONHASHSEED=str(1 + rank),
        ))
        for rank in range(2)
    ]
    try:
        codes = [process.wait(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    told = []
    for file in errors:
        file.seek(0)
        told.append(file.read())
        file.close()
    assert codes == [0, -signal.SIGKILL], "\n".join(told)
    return folder, [torch.load(folder / f"result{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(both, tmp_path_factory):
    """The run of a single process with the configuration of the exact scenario."""
    folder = tmp_path_factory.mktemp("alone")
    config = pair.configure(folder, "alone", regularizers=pair.EXACT, model=pair.EXACT_MODEL)
    assert train.main([config, "train.report=true"]) == 0
    return folder / "alone"


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_time(content):
    measured = ("seconds", "evaluation_seconds", "peak_memory_mb")
    return {k: v for k, v in content.items() if k not in measured}


def known(content):
    return {k: v for k, v in without_time(content).items() if v is not None}


# Losses


@pytest.mark.parametrize("name", pair.terms())
def test_the_shares_of_a_batch_add_up_to_its_loss_and_gradient(both, name):
    value, gradient = pair.measure(name, slice(None))
    found = [result["shares"][name] for result in both[1]]
    for mine, _ in found:
        assert torch.allclose(mine, value, rtol=1e-5, atol=1e-7)
    assert torch.allclose(torch.cat([part for _, part in found]), gradient, rtol=1e-4, atol=1e-7)
    assert gradient.any() or name == "c2s none"


def test_the_threshold_is_that_of_the_whole_batch(both):
    threshold = DynamicThreshold(smoothing=0.5)
    expected = [threshold.update(batch) for batch in pair.confidences()]
    assert len(set(expected)) > 1
    for result in both[1]:
        assert result["shares"]["xi"] == expected
        histograms = result["shares"]["histograms"]
        assert torch.equal(histograms, threshold.state_dict()["histograms"])
        assert result["shares"]["nan"] == "1 of 80 confidences are NaN"


def test_what_the_first_process_finds_all_know(both):
    for result in both[1]:
        assert result["shares"]["from main"] == "process 0 refuses"
        assert result["shares"]["plan"] == ["0", 2]


def test_what_one_process_asks_all_know(both):
    for result in both[1]:
        assert result["shares"]["highest"] == (1, 15, 1, 1)


def test_random_numbers_differ_between_processes(both):
    first, second = (result["shares"]["random"] for result in both[1])
    assert not torch.equal(first, second)


# Training


def test_training_is_the_same_in_one_and_in_two_processes(both, alone):
    folder, results = both
    assert [result["exact"] for result in results] == [0, 0]
    ours, theirs = logged(alone), logged(folder / "pair")
    assert len(ours) == len(theirs) == 6
    for mine, other in zip(ours, theirs, strict=True):
        assert set(mine) == set(other)
        assert known(other) == pytest.approx(known(mine), rel=1e-4, abs=1e-6)
        assert (mine["xi"], mine["xi_aux"]) == (other["xi"], other["xi_aux"])
    assert {"c2s", "csc", "s2c", "fsl", "plda_adversarial", "dense_energy"} <= set(ours[-1])
    mine, other = read(alone / "last.pth"), read(folder / "pair" / "last.pth")
    for part in ("online", "assignment", "regularizers"):
        for key, value in mine[part].items():
            # The softmax of the attention cancels the bias of the keys: its gradient is rounding.
            # So are some of the smallest gradients, which Adam divides by their own size.
            if not key.endswith("qkv.bias"):
                assert torch.allclose(other[part][key], value, atol=5e-4), (part, key)
    runs = alone, folder / "pair"
    scores, others = (without_time(json.loads((run / "summary.json").read_text())) for run in runs)
    assert set(scores) == set(others) and scores["images"] == others["images"] == 5
    assert others["classification_map"] == pytest.approx(scores["classification_map"], abs=1e-6)
    assert others["miou"] == pytest.approx(scores["miou"], abs=0.02)
    panels = [sorted(path.name for path in (run / "panels").iterdir()) for run in runs]
    assert panels[0] == panels[1]


def test_what_a_report_needs_is_of_all_images_in_two_processes(both, alone):
    runs = alone, both[0] / "pair"
    mine, other = (json.loads((run / "details.json").read_text()) for run in runs)
    pixels = [np.sum(details["confusion"], axis=1).tolist() for details in (mine, other)]
    assert pixels[0] == pixels[1] and mine["images_of_class"] == other["images_of_class"]
    assert sum(mine["image_scores"]) == sum(other["image_scores"]) == mine["images"] == 5
    assert mine["fitted"] == other["fitted"]
    for run, details in zip(runs, (mine, other), strict=True):
        assert len(details["examples"]) == 5
        assert sorted(path.name for path in (run / "examples").iterdir()) == [
            example["file"] for example in details["examples"]]


def test_a_signal_to_one_process_stops_both_where_they_are_and_resuming_is_exact(both):
    folder, results = both
    for result in results:
        assert result["uninterrupted"] == result["resumed"] == 0
        assert result["interrupted"] == (128 + signal.SIGTERM, 4)
    ours, theirs = ([without_time(line) for line in logged(folder / name)]
                    for name in ("whole", "halves"))
    assert ours == theirs
    mine, other = (read(folder / name / "last.pth") for name in ("whole", "halves"))
    for part in ("online", "assignment", "regularizers"):
        for key, value in mine[part].items():
            assert torch.equal(value, other[part][key]), (part, key)


def test_a_run_goes_on_in_another_number_of_processes(both, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(both[0] / "pair", run)
    assert train.main(["--resume", str(run), "train.iterations=7"]) == 0
    assert [line["iteration"] for line in logged(run)] == list(range(1, 8))


def test_batch_statistics_are_the_mean_over_the_processes(both):
    (own, mine, average), (other, theirs, its_average) = (r["moving"] for r in both[1])
    assert not torch.equal(own, other), "each has seen images of its own"
    assert torch.allclose(mine, (own + other) / 2, atol=1e-6)
    assert torch.equal(mine, theirs) and torch.equal(average, its_average)
    assert not torch.equal(average, mine)


def test_images_to_paste_in_one_process_only(both):
    assert [result["one_partner"] for result in both[1]] == [0, 0]
    last = logged(both[0] / "pasting")[-1]
    assert {"csd_foreground", "csd_background"} <= set(last) and last["loss"] > 0


def test_a_divergence_is_told_once_with_all_images_of_the_batch(both):
    told = sorted(result["divergence"] for result in both[1])
    assert told[1] == "exit 2"
    assert "the loss is not finite at iteration 3 (terms: s2c; images: train_" in told[0]
    assert told[0].count("train_0") == pair.BATCH
    assert read(both[0] / "diverging" / "last.pth")["state"]["iteration"] == 2


def test_a_batch_that_cannot_be_split_is_refused_once(both):
    for result in both[1]:
        assert result["shares"]["odd"].endswith("over 2 processes: use 4 or 6")
    told = sorted(result["refusal"] for result in both[1])
    assert told[1] == "exit 2"
    assert "train.batch_size=3" in told[0] and "use 2 or 4" in told[0]
    assert not (both[0] / "odd").exists()


def test_a_killed_process_ends_the_other_and_the_checkpoint_is_good(both, tmp_path):
    assert "one of the processes ended or cannot be reached" in both[1][0]["killed"]
    run = both[0] / "killed"
    assert read(run / "last.pth")["state"]["iteration"] == 4
    assert train.main(["--resume", str(run), "train.iterations=5"]) == 0


def test_torchrun_saves_and_stops_on_a_signal(tmp_path):
    config = pair.configure(tmp_path, "run", train=pair.SHORT | {"iterations": 10**6})
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--master-addr", "127.0.0.1", "--master-port", str(free_ports(1)[0]),
               str(ROOT / "train.py"), config]
    run = tmp_path / "run"
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not ((run / "metrics.jsonl").exists() and len(logged_so_far(run)) >= 3):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    iteration = read(run / "last.pth")["state"]["iteration"]
    assert iteration == logged(run)[-1]["iteration"]
    assert errors.count(f"stopped at iteration {iteration}; continue with") == 1


def logged_so_far(run):
    return (run / "metrics.jsonl").read_text().splitlines()


# Inference


def test_two_processes_segment_each_image_once_and_tell_the_same(both, tmp_path):
    folder, results = both
    assert infer.main(pair.infer_command(folder, "alone")) == 1
    codes, output = zip(*(result["segment"] for result in results), strict=True)
    assert codes == (1, 1)
    assert "4 done" in output[0] and "1 failed" in output[0] and "mIoU" in output[0]
    assert output[1] == ""
    kinds = "alone", "together"
    names = sorted(path.name for path in (folder / "alone").iterdir())
    assert names == sorted(path.name for path in (folder / "together").iterdir())
    for name in names:
        assert (folder / "alone" / name).read_bytes() == (folder / "together" / name).read_bytes()
    mine, other = (json.loads((folder / f"{name}.json").read_text()) for name in kinds)
    for summary in (mine, other):
        for entry in (*summary["images"], summary["run"]):
            entry.pop("seconds")
        del summary["run"]["images_per_second"], summary["run"]["output"]
    assert [entry["path"] for entry in other["images"]] == [f"{k}.png" for k in range(5)]
    assert mine == other
    assert mine["run"]["scores"]["images"] == 3 and mine["run"]["unscored"] == 1
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("finished", [[False] * 7, [True] * 5 + [False] * 4, [True] * 3, [False]])
def test_shares_of_files_are_even_and_cover_all(monkeypatch, finished):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(share(finished))
    assert sum((list(range(9))[part] for part in parts), []) == list(range(len(finished)))
    left = [finished[part].count(False) for part in parts]
    assert max(left) - min(left) <= 1


# A single process


def test_alone_nothing_is_exchanged(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tensor, calls = torch.ones(2), []
    with distributed.processes():
        assert not dist.is_initialized()
        assert distributed.all_sum(tensor) is distributed.all_mean(tensor) is tensor
        assert distributed.gather("x") == ["x"] and distributed.highest(3) == 3
        assert distributed.highest_each(3, False) == (3, False)
        assert distributed.from_main(lambda: 5) == 5
        assert distributed.share_of_batch(3) == slice(0, 3)
        distributed.main_only(calls.append)(1)
        before = torch.get_rng_state()
        distributed.reseed(1, 2)
        assert torch.equal(before, torch.get_rng_state())
    assert calls == [1]


def test_processes_that_do_not_find_each_other(monkeypatch):
    for key, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UserError, match="MASTER_PORT"), distributed.processes():
        pass
