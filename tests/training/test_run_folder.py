import json
import os
import subprocess
import sys

import pytest
import yaml

from cosa.config import from_dict, load_config, to_dict
from cosa.core.errors import UserError
from cosa.core.files import TEMPORARY
from cosa.training import run_folder
from cosa.training.run_folder import RunFolder
from tests.helpers.tiny import ROOT, tiny_tree


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "runs" / "one")


def test_create_writes_the_whole_configuration(run):
    config = from_dict(tiny_tree())
    run.create(config)
    assert load_config(run.config) == config
    assert run.metrics.read_text() == run.evaluations.read_text() == ""


def test_create_refuses_a_folder_with_a_checkpoint_and_leaves_it(run):
    run.create(from_dict(tiny_tree()))
    run.last.write_bytes(b"precious")
    run.log({"iteration": 1})
    with pytest.raises(UserError, match="already holds a run.*--resume"):
        run.create(from_dict(tiny_tree(seed=9)))
    assert run.last.read_bytes() == b"precious"
    assert run.metrics.read_text() and load_config(run.config).seed == 3


def test_create_starts_anew_where_nothing_was_saved(run):
    run.create(from_dict(tiny_tree()))
    run.log({"iteration": 1})
    run.log_evaluation(1, {"miou": 0.5})
    run.best.write_bytes(b"stale")
    run.write_summary({"miou": 0.5})
    run.create(from_dict(tiny_tree(seed=9)))
    assert run.metrics.read_text() == run.evaluations.read_text() == ""
    assert load_config(run.config).seed == 9
    assert not run.best.exists() and not run.summary.exists()


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*free space"):
        RunFolder(tmp_path / "file" / "run").create(from_dict(tiny_tree()))


def test_reopen_applies_overrides(run):
    run.create(from_dict(tiny_tree()))
    run.last.write_bytes(b"")
    assert run.reopen(["train.iterations=99", "device=cpu"]).train.iterations == 99


def test_reopen_takes_runs_of_earlier_versions(run):
    tree = to_dict(from_dict(tiny_tree()))
    del tree["model"]["normalization"]
    run.path.mkdir(parents=True)
    run.config.write_text(yaml.safe_dump(tree))
    assert run.reopen([]).model.normalization == "imagenet"


def test_reopen_needs_the_configuration(run):
    run.create(from_dict(tiny_tree()))
    run.last.write_bytes(b"")
    run.config.unlink()
    with pytest.raises(UserError, match="holds no run to resume.*config.yaml.*begin with"):
        run.reopen([])


def test_reopen_takes_a_run_killed_before_its_first_checkpoint(run):
    config = from_dict(tiny_tree())
    run.create(config)
    assert run.reopen([]) == config


@pytest.mark.parametrize("name", ["best", "summary"])
def test_reopen_refuses_results_without_a_checkpoint(run, name):
    run.create(from_dict(tiny_tree()))
    getattr(run, name).write_text("{}")
    with pytest.raises(UserError, match="holds no run to resume.*last.pth is missing.*put .* back"):
        run.reopen([])
    run.older(7).write_bytes(b"")
    assert run.reopen([])


def test_an_older_checkpoint_alone_is_a_run(run):
    run.create(from_dict(tiny_tree()))
    run.older(7).write_bytes(b"")
    with pytest.raises(UserError, match="already holds a run"):
        run.check_free()


def test_checkpoints_are_listed_from_the_newest(run):
    run.create(from_dict(tiny_tree()))
    for iteration in (9, 100, 123456789, 20):
        run.older(iteration).write_bytes(b"")
    run.last.write_bytes(b"")
    (run.path / "checkpoint-mine.pth").write_bytes(b"")
    names = [path.name for path in run.checkpoints()]
    assert names == ["last.pth", "checkpoint-123456789.pth", "checkpoint-00000100.pth",
                     "checkpoint-00000020.pth", "checkpoint-00000009.pth"]


def test_leftovers_of_a_killed_program_are_deleted(run):
    run.create(from_dict(tiny_tree()))
    run.panels.mkdir()
    leftovers = [run.path / TEMPORARY.format("a"), run.panels / TEMPORARY.format("0a" * 16)]
    others = [run.path / ".last.pth.tmp", run.path / "last.pth.abcd_123.tmp", run.panels / "a.png"]
    for start in (lambda: run.forget_after(0), lambda: run.create(from_dict(tiny_tree()))):
        for path in leftovers + others:
            path.write_bytes(b"x")
        start()
        assert not any(path.exists() for path in leftovers)
        assert all(path.exists() for path in others)


def test_final_scores_of_later_iterations_are_forgotten(run):
    run.create(from_dict(tiny_tree()))
    run.write_summary({"iterations": 8})
    run.forget_after(8)
    assert run.summary.exists()
    run.forget_after(7)
    assert not run.summary.exists()
    run.summary.write_text("{")
    with pytest.raises(UserError, match="summary.json is damaged.*delete it"):
        run.forget_after(7)


def test_metrics_after_the_checkpoint_are_forgotten(run):
    run.create(from_dict(tiny_tree()))
    for iteration in (1, 2, 3, 4):
        run.log({"iteration": iteration, "loss": 0.5})
    with open(run.metrics, "a") as file:
        file.write('{"iteration": 2, "lo')  # the process died while writing
    for iteration in (2, 4):
        run.log_evaluation(iteration, {"miou": 0.1 * iteration})
    run.forget_after(2)
    run.log({"iteration": 3})
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [record["iteration"] for record in records] == [1, 2, 3]
    assert run.read_evaluations() == [{"iteration": 2, "miou": 0.2}]


@pytest.mark.parametrize("line", ["[1]", "7", "null", "{}", '{"iteration": "2"}',
                                  '{"iteration": true}', '{"iteration": 1e9}'])
@pytest.mark.parametrize("name", ["metrics", "evaluations"])
def test_lines_of_other_kinds_are_told_and_nothing_is_changed(run, name, line):
    run.create(from_dict(tiny_tree()))
    for iteration in (1, 2):
        run.log({"iteration": iteration})
    path = getattr(run, name)
    path.write_text(path.read_text() + line + "\n")
    before = run.metrics.read_text(), run.evaluations.read_text()
    with pytest.raises(UserError, match=f"{path.name}, line .*delete the line"):
        run.forget_after(1)
    assert (run.metrics.read_text(), run.evaluations.read_text()) == before


@pytest.mark.parametrize("rest", [b'{"iteration": "\xed\xa0', b"\0" * 50, b"\xff", b"[" * 9999])
def test_what_a_loss_of_power_leaves_is_dropped(run, rest):
    run.create(from_dict(tiny_tree()))
    run.log({"iteration": 1})
    run.metrics.write_bytes(run.metrics.read_bytes() + rest)
    run.forget_after(1)
    assert run.metrics.read_text() == '{"iteration": 1}\n'


@pytest.mark.parametrize("text", ["[]", "7", '{"iterations": null}', '{"iterations": "8"}'])
def test_a_summary_of_another_shape_is_told(run, text):
    run.create(from_dict(tiny_tree()))
    run.summary.write_text(text)
    with pytest.raises(UserError, match="summary.json is damaged.*delete it"):
        run.forget_after(7)


def test_an_evaluation_takes_the_place_of_its_former_self(run):
    run.create(from_dict(tiny_tree()))
    for iteration, miou in ((2, 0.1), (4, 0.2), (4, 0.3)):
        run.log_evaluation(iteration, {"miou": miou})
    assert run.read_evaluations() == [{"iteration": 2, "miou": 0.1}, {"iteration": 4, "miou": 0.3}]
    assert RunFolder(run.path / "other").read_evaluations() == []


def test_a_failed_write_leaves_the_old_files(run, monkeypatch):
    run.create(from_dict(tiny_tree()))
    run.log({"iteration": 1})
    run.write_summary({"iterations": 1, "miou": 0.5})
    before = {path: path.read_bytes() for path in run.path.iterdir()}

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for write in (lambda: run.write_config(from_dict(tiny_tree(seed=9))),
                  lambda: run.forget_after(0), lambda: run.write_summary({})):
        with pytest.raises(UserError, match="cannot write .*No space left"):
            write()
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


LOCK = """
import sys
from cosa.core.errors import UserError
from cosa.training.run_folder import RunFolder
for _ in range(2):
    try:
        with RunFolder(sys.argv[1]).locked():
            print("locked", flush=True)
            sys.stdin.read()
    except UserError as error:
        print(error, flush=True)
        sys.stdin.readline()
"""


def test_two_programs_never_train_into_one_folder(run):
    command = [sys.executable, "-c", LOCK, str(run.path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as other:
        with run.locked():
            assert b"another program trains into" in other.stdout.readline()
        other.stdin.write(b"again\n")
        other.stdin.flush()
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match="another program trains into"):
            with run.locked():
                pass
        other.kill()
    with run.locked():
        pass


def test_without_locks_it_goes_on(run, monkeypatch):
    monkeypatch.setattr(run_folder, "fcntl", None)
    with run.locked():
        assert run.path.is_dir()


def test_summary(run):
    run.create(from_dict(tiny_tree()))
    run.write_summary({"miou": 0.5, "iou": {"boat": None}})
    assert json.loads(run.summary.read_text()) == {"miou": 0.5, "iou": {"boat": None}}
