"""A divergence is told as one, whoever sees it first, and costs no good checkpoint."""

import math

import pytest
import torch

import train
from cosa.checkpoint import read
from cosa.core.errors import UserError
from cosa.training.run_folder import RunFolder
from tests.helpers.tiny import update_that_acts
from tests.helpers.training import RANDOM, configure, evaluated


def diverging(tmp_path, monkeypatch, value):
    """Train; after five iterations all weights of the average are multiplied by a value."""

    def spoil():
        for weight in averages[0].parameters():
            weight.detach().mul_(value)

    averages = []
    original = train.Session.__post_init__

    def remember(session):
        averages.append(session.cotraining.assignment.network)
        original(session)

    monkeypatch.setattr(train.Session, "__post_init__", remember)
    monkeypatch.setattr(
        "cosa.cotrain.CoTraining.update_assignment", update_that_acts(5, spoil))
    config = configure(tmp_path, model=RANDOM, train={"evaluate_every": 5, "checkpoint_every": 1})
    with pytest.raises(UserError) as caught:
        train.main([config])
    run = RunFolder(tmp_path / "runs" / "tiny")
    kept = read(run.last)
    for part in ("assignment", "online"):
        assert all(torch.isfinite(tensor).all() for tensor in kept[part].values()), part
    assert evaluated(run) == []
    assert "lower optimizer.lr or set optimizer.clip_norm, and resume from" in str(caught.value)
    return str(caught.value), kept["state"]["iteration"]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, value):
    message, iteration = diverging(tmp_path, monkeypatch, value)
    assert "the training diverged: a weight is not finite at iteration 5" in message
    assert iteration == 4, "the checkpoint before is still there"


def test_an_evaluation_sees_a_divergence_first(tmp_path, monkeypatch):
    message, _ = diverging(tmp_path, monkeypatch, 1e30)
    assert message.startswith("the training diverged: the output of the network is not finite in "
                              "the evaluation after iteration 5; ")
