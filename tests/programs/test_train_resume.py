"""Resuming from an older checkpoint, and when checkpoints are written."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
import yaml

import cosa
import train
from cosa.checkpoint import read, save, verify
from cosa.config import load_config
from cosa.config.loading import FORMERLY
from cosa.core.errors import UserError
from cosa.training import session
from cosa.training.run_folder import RunFolder
from cosa.training.session import Session
from tests.helpers.tiny import CNN
from tests.helpers.training import (
    RANDOM,
    assert_equal_runs,
    configure,
    evaluated,
    fake_scores,
    stop_after,
    training_lines,
)

TRAIN = {"iterations": 10, "evaluate_every": 4, "checkpoint_every": 2, "keep_checkpoints": 3}


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "runs" / "tiny")


def spoil(path):
    """Truncate the file: the end of a write that never reached the disk."""
    os.truncate(path, path.stat().st_size // 2)


def train_until(monkeypatch, iteration, config, *scores):
    """Stop by a signal; with fake scores of the evaluations if some are given."""
    with monkeypatch.context() as patch:
        seen = fake_scores(patch, *scores) if scores else []
        stop_after(patch, iteration, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train.main([config]) == 128 + signal.SIGTERM
    return seen


def test_a_finished_run_whose_end_is_damaged_ends_the_same_again(
    train_program, tmp_path, run  # noqa: F811
):
    assert train_program(configure(tmp_path / "other", model=RANDOM, train=TRAIN))[0] == 0
    assert train_program(configure(tmp_path, model=RANDOM, train=TRAIN))[0] == 0
    assert [path.name for path in run.checkpoints()] == [
        "last.pth", "checkpoint-00000008.pth", "checkpoint-00000006.pth"]
    spoil(run.last)
    spoil(run.older(8))
    code, _, errors = train_program("--resume", run.path)
    assert code == 0
    (warning,) = [line for line in errors.splitlines() if line.startswith("warning: ")]
    assert all(str(path) in warning for path in (run.last, run.older(8), run.older(6)))
    assert_equal_runs(run, RunFolder(tmp_path / "other" / "runs" / "tiny"))
    assert evaluated(run) == [4, 8, 10]
    for path in run.checkpoints():
        verify(path)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_cnn_goes_on_exactly_with_its_batch_statistics(tmp_path, run, monkeypatch, frozen):
    model = CNN | {"freeze_batch_norm": frozen}
    other = RunFolder(tmp_path / "other" / "runs" / "tiny")
    assert train.main([configure(tmp_path / "other", model=model, train=TRAIN)]) == 0
    train_until(monkeypatch, 5, configure(tmp_path, model=model, train=TRAIN))
    assert train.main(["--resume", str(run.path)]) == 0
    assert_equal_runs(run, other)
    saved, start = read(run.last), torch.zeros(32)
    for network in ("online", "assignment"):
        mean = saved[network]["encoder.layer4.0.bn2.running_mean"]
        assert torch.equal(mean, start) == frozen
    loaded = cosa.load(run.last).encoder.layer4[0].bn2.running_mean
    assert torch.equal(loaded, saved["assignment"]["encoder.layer4.0.bn2.running_mean"])


@pytest.mark.parametrize("encoder", [{}, CNN | {"freeze_batch_norm": False}])
def test_frozen_layers_and_offsets_go_on_exactly(tmp_path, run, monkeypatch, encoder):
    model = encoder | {"freeze_layers": 2, "class_offset": True, "pooling": "avg"}
    other = RunFolder(tmp_path / "other" / "runs" / "tiny")
    assert train.main([configure(tmp_path / "other", model=model, train=TRAIN)]) == 0
    train_until(monkeypatch, 5, configure(tmp_path, model=model, train=TRAIN))
    middle = read(run.last)
    assert train.main(["--resume", str(run.path)]) == 0
    assert_equal_runs(run, other)
    end, frozen = read(run.last), ("patch_embed", "blocks.0.", "conv1.", "bn1.", "layer1.")
    moved = {key for key, value in middle["online"].items()
             if not torch.equal(value, end["online"][key])}
    stayed = {key for key in end["online"] if key.startswith(tuple(f"encoder.{f}" for f in frozen))}
    assert stayed and not stayed & moved
    assert all(torch.equal(end["online"][k], end["assignment"][k]) for k in stayed)
    assert {"classifier.offset", "aux_classifier.offset", "classifier.weight"} <= moved
    assert any(key.startswith(("encoder.blocks.1.", "encoder.layer2.")) for key in moved)
    count = sum(len(group["params"]) for group in end["optimizer"]["param_groups"])
    weights = [key for key in end["online"] if not key.endswith(
        ("mean", "std", "running_var", "num_batches_tracked"))]
    not_trained = {key for key in weights if key in stayed} | {"encoder.cls_token",
                                                               "encoder.pos_embed"}
    assert count == len(set(weights) - not_trained)


def test_a_run_with_too_many_frozen_layers_does_not_start(train_program, tmp_path):
    code, _, errors = train_program(configure(tmp_path, model={"freeze_layers": 5}))
    assert code == 2 and errors.count("\n") == 1
    assert "model.freeze_layers=5 leaves nothing to train of an encoder of 5 layers" in errors


def test_final_scores_are_gone_while_the_end_is_trained_again(tmp_path, run, monkeypatch):
    assert train.main([configure(tmp_path, train=TRAIN)]) == 0
    spoil(run.last)
    stop_after(monkeypatch, 9, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train.main(["--resume", str(run.path)]) == 128 + signal.SIGTERM
    assert not run.summary.exists() and evaluated(run) == [4, 8]


def test_without_a_readable_checkpoint_one_sentence_and_nothing_is_changed(
    train_program, tmp_path, run, monkeypatch, capfd  # noqa: F811
):
    train_until(monkeypatch, 5, configure(tmp_path, train=TRAIN))
    for path in run.checkpoints():
        spoil(path)
    capfd.readouterr()
    before = {path: path.read_bytes() for path in run.path.glob("*.*")}
    code, _, errors = train_program("--resume", run.path)
    assert code == 2 and errors.count("\n") == errors.count("error: ") == 1
    assert "no checkpoint can be read" in errors and str(run.last) in errors
    assert {path: path.read_bytes() for path in run.path.glob("*.*")} == before


def same(weights, network):
    return all(torch.equal(weights["assignment"][key], value) for key, value in network.items())


@pytest.mark.parametrize("later, best", [(0.3, 0), (0.6, 1)])
def test_best_is_that_of_the_history_that_is_gone_on_with(
    tmp_path, run, monkeypatch, later, best
):
    """The evaluation at 8 is repeated with another score, as it may be on a GPU."""
    config = configure(tmp_path, train=TRAIN)
    first = train_until(monkeypatch, 9, config, 0.5, 0.7)
    assert same(read(run.best), first[1])
    for path in run.checkpoints():
        if read(path)["state"]["iteration"] >= 8:
            spoil(path)
    again = fake_scores(monkeypatch, later, 0.2, 0.1)
    assert train.main(["--resume", str(run.path), "optimizer.lr=2e-3"]) == 0
    assert evaluated(run) == [4, 8, 10]
    assert json.loads(run.summary.read_text())["best_validation_score"] == (0.5, 0.6)[best]
    assert same(read(run.best), (first[0], again[0])[best])
    assert not same(read(run.best), first[1])


def test_a_checkpoint_beside_an_evaluation_is_written_once(tmp_path, run, monkeypatch):
    written = []
    monkeypatch.setattr(session.Rotation, "save", lambda self, content, iteration: (
        written.append((iteration, content["state"]["evaluated"]))))
    config = configure(tmp_path, train={**TRAIN, "iterations": 6, "evaluate_every": 3})
    fake_scores(monkeypatch, *[0.5] * 6)
    assert train.main([config]) == 0
    assert written == [(2, 0), (3, 3), (4, 3), (6, 3), (6, 6)]
    written.clear()
    config = configure(tmp_path, name="other", train={**TRAIN, "iterations": 6})
    assert train.main([config]) == 0
    assert written == [(2, 0), (4, 0), (6, 4), (6, 6)]


def test_a_best_of_later_training_alone_is_taken_away(tmp_path, run, monkeypatch):
    train_until(monkeypatch, 5, configure(tmp_path, train=TRAIN), 0.5)
    for path in run.checkpoints():
        if read(path)["state"]["iteration"] > 2:
            spoil(path)
    stop_after(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train.main(["--resume", str(run.path)]) == 128 + signal.SIGTERM
    assert not run.best.exists() and read(run.last)["state"]["best"] == -1
    assert evaluated(run) == [] and len(training_lines(run)) == 3


def test_a_damaged_best_is_written_again(tmp_path, run, monkeypatch):
    train_until(monkeypatch, 5, configure(tmp_path, train=TRAIN))
    before = read(run.best)["assignment"]
    spoil(run.best)
    fake_scores(monkeypatch, 0.0, 0.0, 0.0)
    assert train.main(["--resume", str(run.path)]) == 0
    assert same(read(run.best), before)


def test_checkpoints_from_before_they_held_the_best_leave_it(tmp_path, run, monkeypatch):
    train_until(monkeypatch, 5, configure(tmp_path, train=TRAIN))
    content, before = read(run.last), run.best.read_bytes()
    del content["best"]
    save(run.last, content)
    fake_scores(monkeypatch, 0.0, 0.0, 0.0)
    assert train.main(["--resume", str(run.path)]) == 0
    assert run.best.read_bytes() == before
    assert same(read(run.last)["best"], read(run.best)["assignment"])


def test_a_run_without_a_checkpoint_resumes_from_the_beginning(
    train_program, tmp_path, run, monkeypatch  # noqa: F811
):
    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    stop_after(monkeypatch, 1, kill)
    with pytest.raises(Killed):
        train.main([configure(tmp_path, train={"iterations": 2})])
    monkeypatch.undo()
    assert not run.checkpoints() and run.config.exists()
    code, _, errors = train_program("--resume", run.path, "train.iterations=3")
    assert code == 0 and f"{run.path} holds no checkpoint yet" in errors
    assert [line["iteration"] for line in training_lines(run)] == [1, 2, 3]


@pytest.mark.parametrize("minutes, expected", [(0, []), (1, [3, 6, 9]), (0.1, range(1, 10))])
def test_checkpoints_by_the_clock(tmp_path, monkeypatch, minutes, expected):
    """An iteration takes 20 seconds."""
    clock, saved = [1000.0], []
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    original = Session.save

    def keep(self):
        saved.append(self.state.iteration)
        original(self)

    monkeypatch.setattr(Session, "save", keep)
    step = train.optimizer_step
    monkeypatch.setattr(train, "optimizer_step", lambda *args: (
        clock.__setitem__(0, clock[0] + 20), step(*args))[1])
    fake_scores(monkeypatch, 0.1, 0.1)
    options = {"iterations": 10, "checkpoint_every": 1000, "checkpoint_minutes": minutes}
    assert train.main([configure(tmp_path, train=options)]) == 0
    assert saved == [*expected, 10, 10], "the last iteration, and once more with its score"


def test_a_checkpoint_of_another_kind_of_adamw_takes_on_the_present_one(tmp_path, run):
    """Before steps could be skipped on the device, the optimizer was not the fused one."""
    assert train.main([configure(tmp_path, model=RANDOM, train=TRAIN)]) == 0
    content = read(run.last)
    for group in content["optimizer"]["param_groups"]:
        group["fused"] = None
    loaded = []
    original = torch.optim.AdamW.load_state_dict

    def spy(self, state):
        loaded.extend(group["fused"] for group in state["param_groups"])
        return original(self, state)

    save(run.last, content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "load_state_dict", spy)
        assert train.main(["--resume", str(run.path)]) == 0
    # PyTorch moves the count of steps to the device for groups that say so while they are loaded.
    assert loaded and all(loaded)


def as_earlier_versions_wrote_it(run):
    """Neither the keys that came later nor the tensors of the normalisation, always ImageNet's."""
    tree = yaml.safe_load(run.config.read_text())
    for key, value in FORMERLY.items():
        assert tree["model"].pop(key) == value
    run.config.write_text(yaml.safe_dump(tree))
    for path in (*run.checkpoints(), run.best):
        content = read(path)
        for part in (content, content.get("best") or {}):
            if part:
                for key in FORMERLY:
                    part["about"]["config"]["model"].pop(key, None)
            for network in {"online", "assignment"} & part.keys():
                part[network] = {k: v for k, v in part[network].items() if k not in ("mean", "std")}
        save(path, content)


def test_runs_of_earlier_versions_go_on_with_imagenets_normalisation(tmp_path, run, monkeypatch):
    imagenet = RANDOM | {"normalization": "imagenet"}  # the encoder's own is another
    other = RunFolder(tmp_path / "other" / "runs" / "tiny")
    assert train.main([configure(tmp_path / "other", model=imagenet, train=TRAIN)]) == 0
    train_until(monkeypatch, 5, configure(tmp_path, model=imagenet, train=TRAIN))
    as_earlier_versions_wrote_it(run)
    assert train.main(["--resume", str(run.path)]) == 0
    assert_equal_runs(run, other)
    assert load_config(run.config).model.normalization == "imagenet"
    assert "mean" in read(run.last)["assignment"]


@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_cannot_go_on_with_another_normalisation(tmp_path, run, monkeypatch, earlier):
    model = {"normalization": "imagenet"}
    train_until(monkeypatch, 5, configure(tmp_path, model=model, train=TRAIN))
    if earlier:
        as_earlier_versions_wrote_it(run)
    with pytest.raises(UserError, match="trained with another model.normalization"):
        train.main(["--resume", str(run.path), "model.normalization=encoder"])
    assert train.main(["--resume", str(run.path)]) == 0


def test_numbers_on_the_command_line_are_the_networks(tmp_path, run):
    option = "model.normalization=[[0.5,0.25,0.5],[0.5,0.5,0.125]]"
    assert train.main([configure(tmp_path, train={"iterations": 1}), option]) == 0
    network = cosa.load(run.best)
    assert network.mean.flatten().tolist() == [0.5, 0.25, 0.5]
    assert network.std.flatten().tolist() == [0.5, 0.5, 0.125]


def test_a_run_resumed_at_its_end_stays_as_it_is(tmp_path, finished):
    ended, _ = finished
    again = RunFolder(shutil.copytree(ended.path, tmp_path / "again"))
    assert train.main(["--resume", str(again.path)]) == 0
    mine, theirs = read(again.last), read(ended.last)
    for content in (mine, theirs):
        content["state"]["seconds"] = 0.0
    assert [group["lr"] for group in mine["optimizer"]["param_groups"]] == [
        group["lr"] for group in theirs["optimizer"]["param_groups"]]
    assert as_plain(mine) == as_plain(theirs)


def as_plain(content):
    """A checkpoint's content in types that can be compared."""
    if isinstance(content, dict):
        return {key: as_plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [as_plain(value) for value in content]
    return content.tolist() if isinstance(content, torch.Tensor) else content
