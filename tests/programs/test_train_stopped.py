"""How a training stops: by SIGINT or SIGTERM, within a step or an evaluation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

import train
from cosa.checkpoint.files import read
from cosa.data.scenes.dataset import ScenesDataset
from cosa.training import evaluation as scoring
from cosa.training.run_folder import RunFolder
from tests.helpers.tiny import ROOT
from tests.helpers.training import (
    RANDOM,
    assert_equal_runs,
    configure,
    environment,
    evaluated,
    stop_after,
    training_lines,
)


def interrupt_evaluation(monkeypatch, number, batches):
    """Send SIGTERM in the given evaluation once it has seen so many batches."""
    original, calls = scoring.evaluate, []

    def interrupted(*args, should_stop, **options):
        calls.append(0)

        def ask():
            if len(calls) == number:
                calls[-1] += 1
                if calls[-1] == batches:
                    os.kill(os.getpid(), signal.SIGTERM)
            return should_stop()

        return original(*args, should_stop=ask, **options | {"batch_size": 1})

    monkeypatch.setattr(scoring, "evaluate", interrupted)
    return calls


@pytest.mark.parametrize("number, iteration", [(1, 6), (2, 12), (3, 12)])
def test_an_interrupted_evaluation_ends_soon_and_is_repeated(
    finished, tmp_path, monkeypatch, capfd, number, iteration
):
    config = configure(tmp_path, model=RANDOM, train={"evaluate_every": 6})
    run = RunFolder(tmp_path / "runs" / "tiny")
    calls = interrupt_evaluation(monkeypatch, number, batches=2)
    assert train.main([config]) == 128 + signal.SIGTERM
    assert calls[-1] == 2 and len(calls) == number
    assert read(run.last)["state"]["iteration"] == iteration
    assert evaluated(run) == [6, 12][: number - 1]
    assert f"stopped at iteration {iteration}" in capfd.readouterr().err
    monkeypatch.undo()
    assert train.main(["--resume", str(run.path)]) == 0
    assert evaluated(run) == [6, 12]
    assert_equal_runs(run, finished[0])


@pytest.mark.parametrize("number, group", [(signal.SIGINT, True), (signal.SIGTERM, True),
                                           (signal.SIGTERM, False)])
def test_signals_save_before_leaving(tmp_path, number, group):
    config = configure(tmp_path, data={"workers": 1}, train={"iterations": 10**6})
    run = RunFolder(tmp_path / "runs" / "tiny")
    command = [sys.executable, str(ROOT / "train.py"), config]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (run.metrics.exists() and run.metrics.read_text().count("\n") >= 5):
            assert process.poll() is None and time.monotonic() < deadline, process.stderr
            time.sleep(0.05)
        os.killpg(process.pid, number) if group else process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    iteration = read(run.last)["state"]["iteration"]
    assert iteration == training_lines(run)[-1]["iteration"] >= 5
    assert f"stopped at iteration {iteration}" in errors and f"--resume {run.path}" in errors
    with pytest.raises(ProcessLookupError):  # no worker is left behind
        os.killpg(process.pid, 0)


def test_handlers_are_put_back(stopped, monkeypatch):
    before = [signal.signal(number, signal.default_int_handler)
              for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        stop_after(monkeypatch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train.main(["--resume", str(stopped.path)]) == 128 + signal.SIGTERM
        for number in (signal.SIGINT, signal.SIGTERM):
            assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_ctrl_c_before_the_training_begins(train_program, tmp_path, monkeypatch):
    def interrupted(self, *args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ScenesDataset, "__init__", interrupted)
    code, _, errors = train_program(configure(tmp_path))
    assert code == 130 and "Traceback" not in errors
