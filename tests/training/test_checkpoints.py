import os

import pytest
import torch

from cosa import checkpoint
from cosa.checkpoint import DamagedError, read, save, verify
from cosa.core.errors import UserError
from cosa.training.checkpoints import Rotation
from cosa.training.run_folder import RunFolder


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


def content(iteration):
    return {"state": {"iteration": iteration}, "weights": torch.full((2000,), float(iteration))}


def fill(run, keep, *iterations):
    rotation = Rotation(run, keep)
    for iteration in iterations:
        rotation.save(content(iteration), iteration)
    return rotation


def kept(run):
    """Names of the files, and that each holds the iteration it is named after."""
    for path in run.older_checkpoints():
        assert read(path)["state"]["iteration"] == run.iteration_of(path)
    return sorted(os.listdir(run.path))


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 4
    path.write_bytes(data)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "short of a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "flipped bit": flip,
}


@pytest.mark.parametrize("keep, names", [
    (1, []),
    (2, ["checkpoint-00000020.pth"]),
    (3, ["checkpoint-00000010.pth", "checkpoint-00000020.pth"]),
    (9, ["checkpoint-00000005.pth", "checkpoint-00000010.pth", "checkpoint-00000020.pth"]),
])
def test_the_last_ones_are_kept(run, keep, names):
    fill(run, keep, 5, 10, 20, 30)
    assert kept(run) == [*names, "last.pth"]
    assert read(run.last)["state"]["iteration"] == 30


def test_the_same_iteration_does_not_push_out_an_older_one(run):
    fill(run, 2, 10, 20, 20, 20)
    assert kept(run) == ["checkpoint-00000010.pth", "last.pth"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_whenever_it_is_killed_one_is_readable_and_no_more_are_kept(
    run, keep, links, monkeypatch
):
    """Each call that changes the folder is the last one once; then a run goes on from there."""
    if not links:
        monkeypatch.setattr(os, "link", refuse_link)
    for step in range(30):
        for path in run.checkpoints():
            path.unlink()
        rotation = fill(run, keep, 10, 20, 30)
        with monkeypatch.context() as patch:
            done = kill_at(patch, step)
            try:
                rotation.save(content(40), 40)
            except Killed:
                pass
        distinct = {path.stat().st_ino for path in run.checkpoints()}
        assert 1 <= len(distinct) <= len(run.checkpoints()) <= keep
        assert not links or run.last.exists(), "last.pth is never missing"
        again = Rotation(run, keep)
        path, found = again.read()
        iteration = found["state"]["iteration"]
        assert iteration in (30, 40)
        again.settle(path, iteration)
        again.save(content(50), 50)
        assert read(run.last)["state"]["iteration"] == 50
        assert len(run.checkpoints()) <= keep
        if done():
            break
    assert step >= 1 and done()


def refuse_link(source, target):
    raise PermissionError(1, "Operation not permitted")


def kill_at(patch, step):
    """Die before the step-th change of the folder; a function: did all of them happen?"""
    calls = []

    def counted(original):
        def call(*args, **kwargs):
            if len(calls) == step:
                raise Killed
            calls.append(original)
            return original(*args, **kwargs)

        return call

    patch.setattr(os, "replace", counted(os.replace))
    patch.setattr(os, "unlink", counted(os.unlink))
    patch.setattr(os, "link", counted(os.link))
    patch.setattr(torch, "save", counted(torch.save))
    return lambda: len(calls) < step


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_one_is_passed_over_with_one_warning(run, damage, capsys):
    fill(run, 3, 10, 20, 30)
    damage(run.last)
    rotation = Rotation(run, 3)
    before = kept(run)
    path, found = rotation.read()
    assert path == run.older(20) and found["state"]["iteration"] == 20
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and str(run.last) in warning and str(path) in warning
    assert kept(run) == before, "reading changes nothing"
    rotation.settle(path, 20)
    assert kept(run) == ["checkpoint-00000010.pth", "last.pth"]
    assert read(run.last)["state"]["iteration"] == 20
    rotation.save(content(30), 30)
    assert kept(run) == ["checkpoint-00000010.pth", "checkpoint-00000020.pth", "last.pth"]
    rotation.read()
    assert not capsys.readouterr().err


def test_two_damaged_ones_are_passed_over(run, capsys):
    fill(run, 3, 10, 20, 30)
    flip(run.last)
    flip(run.older(20))
    path, _ = Rotation(run, 3).read()
    assert path == run.older(10)
    warning = capsys.readouterr().err
    assert all(str(name) in warning for name in (run.last, run.older(20), path))
    Rotation(run, 3).settle(path, 10)
    assert os.listdir(run.path) == ["last.pth"]


def test_if_none_is_readable_one_sentence_says_so(run):
    fill(run, 2, 10, 20)
    flip(run.last)
    run.older(10).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        Rotation(run, 2).read()
    message = str(caught.value)
    assert "no checkpoint can be read" in message and "\n" not in message
    assert str(run.last) in message and str(run.older(10)) in message and "begin anew" in message
    run.last.unlink()
    run.older(10).unlink()
    with pytest.raises(UserError, match="there is no file .*last.pth"):
        Rotation(run, 2).read()


def test_a_missing_last_one_is_told_and_put_back(run, capsys):
    fill(run, 2, 10, 20)
    run.last.unlink()
    path, _ = Rotation(run, 2).read()
    assert path == run.older(10) and "last.pth is missing" in capsys.readouterr().err
    Rotation(run, 2).settle(path, 10)
    assert os.listdir(run.path) == ["last.pth"]


def test_going_back_by_hand_forgets_what_came_after(run):
    rotation = fill(run, 4, 10, 20, 30)
    os.replace(run.older(10), run.last)
    path, _ = rotation.read()
    rotation.settle(path, 10)
    assert os.listdir(run.path) == ["last.pth"]
    rotation.save(content(20), 20)
    assert kept(run) == ["checkpoint-00000010.pth", "last.pth"]


def test_fewer_are_kept_once_fewer_are_asked_for(run):
    fill(run, 4, 10, 20, 30, 40)
    rotation = Rotation(run, 2)
    rotation.settle(run.last, 40)
    assert kept(run) == ["checkpoint-00000030.pth", "last.pth"]


def test_a_full_disk_leaves_a_readable_one(run, monkeypatch):
    rotation = fill(run, 2, 10, 20)

    def full(content, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="cannot write .*last.pth.*No space left.*free space"):
        rotation.save(content(30), 30)
    assert read(run.last)["state"]["iteration"] == 20
    assert kept(run) == ["checkpoint-00000020.pth", "last.pth"]


def test_a_file_that_must_not_be_read_is_not_called_damaged(run, monkeypatch):
    fill(run, 2, 10, 20)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(UserError, match="last.pth cannot be read .Permission denied") as caught:
        Rotation(run, 2).read()
    assert not isinstance(caught.value, DamagedError)


def test_want_of_memory_is_not_called_damage(run, monkeypatch):
    fill(run, 2, 10, 20)

    def scarce(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr(torch, "load", scarce)
    with pytest.raises(UserError, match="can't allocate memory") as caught:
        Rotation(run, 2).read()
    assert not isinstance(caught.value, DamagedError)


def test_a_file_of_another_program_is_refused_and_not_passed_over(run):
    fill(run, 2, 10, 20)
    torch.save({"state": run}, run.last)
    with pytest.raises(UserError, match="could run code") as caught:
        Rotation(run, 2).read()
    assert not isinstance(caught.value, DamagedError)


def test_flipped_bits_that_pytorch_does_not_notice_are_found(tmp_path):
    path = tmp_path / "a.pth"
    save(path, {"weights": torch.arange(1000.0)})
    verify(path)
    flip(path)
    assert not torch.equal(read(path)["weights"], torch.arange(1000.0)), "PyTorch reads on"
    with pytest.raises(DamagedError, match="a.pth is damaged: the check sum of .* is wrong"):
        verify(path)
    with pytest.raises(UserError, match="gone.pth cannot be read .No such file"):
        verify(tmp_path / "gone.pth")


def test_holds_compares_weights_and_description(tmp_path):
    path = tmp_path / "best.pth"
    weights = {"about": {"classes": ["a"]}, "assignment": {"x": torch.ones(3000)}}
    assert not checkpoint.holds(path, weights)
    save(path, weights)
    assert checkpoint.holds(path, weights)
    for other in ({"about": {}, "assignment": {"x": torch.ones(3000)}},
                  {"about": weights["about"], "assignment": {"x": torch.zeros(3000)}},
                  {"about": weights["about"], "assignment": {"y": torch.ones(3000)}}):
        assert not checkpoint.holds(path, other)
    flip(path)
    assert not checkpoint.holds(path, weights)
    save(path, {"something": 1})
    assert not checkpoint.holds(path, weights)
