"""Tiny runs of train.py, and what they left in their folders."""

from __future__ import annotations

import json
import os

import torch

from cosa.checkpoint.files import read
from cosa.cotrain import CoTraining
from cosa.training import evaluation as scoring
from tests.helpers.tiny import tiny_tree, update_that_acts, write_yaml

# Dropout in the online network draws from the global generator: resuming must restore it.
RANDOM = {"encoder_options": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4,
                              "num_heads": 2, "proj_drop_rate": 0.1}}


def configure(folder, **sections):
    """Write a tiny configuration; its runs go to folder/runs."""
    folder.mkdir(parents=True, exist_ok=True)
    return str(write_yaml(folder / "config.yaml", tiny_tree(folder / "runs", **sections)))


def lines(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def training_lines(run):
    """The logged terms, without the time."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines(run)]


def evaluated(run):
    """Iterations of the logged evaluations."""
    return [scores["iteration"] for scores in run.read_evaluations()]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


def stop_after(monkeypatch, iterations, how):
    """Interrupt the training in this process once so many iterations are done."""
    monkeypatch.setattr(CoTraining, "update_assignment", update_that_acts(iterations, how))


def without_time(scores):
    """Scores without what every run of the same training measures anew: seconds and memory."""
    return {key: value for key, value in scores.items()
            if not key.endswith(("seconds", "memory_mb"))}


def assert_equal_runs(run, other):
    assert training_lines(run) == training_lines(other)
    mine, theirs = read(run.last), read(other.last)
    for network in ("online", "assignment"):
        for key, value in mine[network].items():
            assert torch.equal(value, theirs[network][key]), f"{network} {key}"
    for key, state in mine["optimizer"]["state"].items():
        assert all(torch.equal(v, theirs["optimizer"]["state"][key][k]) for k, v in state.items())
    assert mine["optimizer"]["param_groups"] == theirs["optimizer"]["param_groups"]
    for key, state in mine["thresholds"].items():
        assert state["value"] == theirs["thresholds"][key]["value"]
        assert torch.equal(state["histograms"], theirs["thresholds"][key]["histograms"])
    assert torch.equal(mine["rng"]["cpu"], theirs["rng"]["cpu"])
    assert mine["state"] | {"seconds": 0} == theirs["state"] | {"seconds": 0}
    scores, others = (without_time(json.loads(r.summary.read_text())) for r in (run, other))
    assert scores == others


def fake_scores(monkeypatch, *values):
    """Let the evaluations end with these label-free scores; the list of calls."""
    calls, values = [], list(values)

    def fake(network, dataset, **options):
        calls.append({key: value.clone() for key, value in network.state_dict().items()})
        assert not any(p.requires_grad for p in network.parameters())
        return {"miou": values.pop(0), "classification_map": 0.1, "images": 1, "seconds": 0.0}

    monkeypatch.setattr(scoring, "evaluate", fake)
    return calls
