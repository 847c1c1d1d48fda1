"""infer.py as a shell starts it: stopped by many signals, with nobody to read, twice at once."""

import errno
import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cosa.core.files import FolderLock
from cosa.inference import outputs
from cosa.inference.task import Task
from tests.helpers.inference import files, read, refusal, run_main, save
from tests.helpers.tiny import ROOT

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or not os.path.exists("/dev/full"), reason="needs Linux"
)


SIGNALS = {  # the first signal, and the longest time between further ones
    "keys": (signal.SIGINT, 0.2),
    "storm": (signal.SIGINT, 0.002),
    "batch": (signal.SIGTERM, 0.02),
}
EARLY = {"early": signal.SIGTERM}
EXPORT = ["--export", "coco,yolo,labelme,labelstudio", "--simplify", "0"]
UNREAD = {  # where standard streams lead, the exit code, and what is told
    "gone stdout": ({"stdout": "gone"}, 0, ""),
    "full disk": ({"stdout": "full"}, 1,
                  "error: what was to be printed is lost: No space left on device\n"),
    "gone stderr": ({"stderr": "gone"}, 0, ""),
    "both closed": ({"stdout": "closed", "stderr": "closed"}, 0, ""),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory, weights):
    """The folder of all runs, and by name what tests/helpers/outside.py says of each."""
    folder, rng = tmp_path_factory.mktemp("outside"), random.Random(0)
    content = save(folder / "many/0.png", (120, 80)).read_bytes()
    for k in range(1, 600):
        (folder / f"many/{k}.png").write_bytes(content)
    (folder / "truth").mkdir()
    for k in range(3):
        save(folder / f"few/{k}.png")
        Image.fromarray(np.ones((12, 20), np.uint8)).save(folder / f"truth/{k}.png")

    def job(name, source, **rest):
        places = ["--output", folder / name / "out", "--json", folder / name / "s.json"]
        options = ["--weights", weights, "--device", "cpu", "--workers", 2]
        if source == "few":
            options += ["--evaluate", folder / "truth"]
        return {"arguments": list(map(str, [folder / source, *places, *options])), **rest}

    jobs = {}
    for name, (number, gap) in SIGNALS.items():
        others = [number, signal.SIGINT, signal.SIGTERM]
        further = [[gap * rng.random(), rng.choice(others)] for _ in range(30)]
        jobs[name] = job(name, "many", signals=[[0.3 * rng.random(), number], *further])
        jobs[name]["await"] = str(folder / name / "out/0.png")
    for name, number in EARLY.items():
        jobs[name] = job(name, "few", signals=[[0.03, number]] + [[0.0005, number]] * 40)
        jobs[name]["await"] = str(folder)
    jobs["killed"] = job("killed", "few", dies=str(folder / "killed/out/yolo/labels/1.txt"))
    jobs["killed"]["arguments"] += EXPORT
    for name, (streams, _, _) in UNREAD.items():
        jobs[name] = job(name, "few", **streams)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/helpers/outside.py")],
        input=json.dumps(list(jobs.values())),
        text=True, capture_output=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder, dict(zip(jobs, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", SIGNALS)
def test_however_many_signals_come_the_first_one_counts(ends, name):
    folder, end = ends[0] / name, ends[1][name]
    assert end["code"] == 128 + SIGNALS[name][0], end
    lines = [line for line in end["err"].splitlines() if line]
    assert lines.pop() == "stopped; the same command goes on where it left off"
    assert set(lines) <= {"stopping: what has begun is finished first"}
    assert end["out"].count("masks are in") == 1
    assert not list(folder.rglob("*.tmp"))
    content = json.loads((folder / "s.json").read_text())
    assert content["run"]["interrupted"] and len(content["images"]) < 600
    assert len(content["images"]) == content["run"]["done"]
    for path in folder.rglob("*.png"):
        assert read(path).shape == (80, 120)


@pytest.mark.parametrize("name", EARLY)
def test_a_signal_before_the_first_image_leaves_nothing(ends, name):
    folder, end, number = ends[0] / name, ends[1][name], EARLY[name]
    if end["code"] == -number:  # a fork that was not yet where infer.py begins
        assert not folder.exists()
        return
    assert end["code"] == 128 + number
    if folder.exists():  # a fast machine has begun to write
        assert end["err"] == "stopped; the same command goes on where it left off\n"
        assert not list(folder.rglob("*.tmp"))
    else:
        assert end["err"] == "stopped before the first image\n"


def test_files_for_annotators_are_complete_though_they_were_begun_by_a_killed_run(
    ends, tmp_path, program
):
    folder, out = ends[0], ends[0] / "killed/out"
    assert ends[1]["killed"]["code"] == -signal.SIGKILL
    assert (out / "yolo/labels/0.txt").exists() and not (out / "coco.json").exists()
    assert list(out.rglob("*.tmp"))
    code, text, err = program(folder / "few", out, *EXPORT)
    assert (code, err) == (0, "") and "3 skipped" in text
    assert program(folder / "few", tmp_path / "whole", *EXPORT)[0] == 0
    left = [name for name in files(out) if name.endswith(".tmp")]
    assert all("yolo" in name or "/" not in name for name in left)  # of this very moment
    assert [name for name in files(out) if name not in left] == files(tmp_path / "whole")
    for name in files(tmp_path / "whole"):
        if not name.endswith(".npz") and "labelme" not in name:  # where the images are from there
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("name", UNREAD)
def test_the_work_is_complete_though_nobody_reads(ends, name):
    folder, end = ends[0] / name, ends[1][name]
    _, code, told = UNREAD[name]
    assert end["code"] == code and told in end["err"] and "Traceback" not in end["err"]
    if name == "gone stderr":
        assert "3 images scored" in end["out"] and "mIoU" in end["out"]
    content = json.loads((folder / "s.json").read_text())
    assert content["run"]["done"] == 3 and content["run"]["scores"]["images"] == 3
    assert files(folder / "out") == ["0.png", "1.png", "2.png", "classes.csv"]


def test_two_runs_do_not_work_in_one_folder(tmp_path, weights, program, monkeypatch):
    source, out = save(tmp_path / "in/a.png"), tmp_path / "out"
    busy = (f"another run of infer.py is at work in {out}: wait until it ends, or choose another "
            "--output")
    real, told = outputs.write, []

    def write(job, *arguments):
        # Another run begins while the first one writes.
        told.append(refusal(weights, source, out, "--scales", "1", "--overwrite"))
        told.append(refusal(weights, source, out))
        real(job, *arguments)

    for done in ("1 done", "1 skipped"):
        with monkeypatch.context() as patch:
            patch.setattr(outputs, "write", write)
            code, text, err = program(source, out)
        assert (code, err) == (0, "") and done in text
    assert told == [busy, busy] and files(out) == ["a.png", "classes.csv"]
    reading, writing = FolderLock(out), FolderLock(out)
    assert reading.take(alone=False)
    assert program(source, out)[0] == 0  # reads only
    assert refusal(weights, source, out, "--overwrite") == busy
    assert not writing.take(alone=True)
    reading.release()
    assert writing.take(alone=True)
    assert refusal(weights, source, out) == busy
    writing.release()
    assert program(source, out, "--overwrite")[0] == 0


@pytest.mark.parametrize("options", [(), ("--json", "s.json")])
def test_two_runs_at_once_end_well_where_nothing_is_left_to_do(
    tmp_path, weights, program, monkeypatch, options
):
    monkeypatch.chdir(tmp_path)
    source = save(tmp_path / "in/deep/a.png").parents[1]
    assert program(source, "out")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    real, codes = Task.start, []

    def start(task):
        real(task)
        # Another run begins and ends while this one is at work, and has been for long.
        for path in tmp_path.rglob(".cosa-*.tmp"):
            os.utime(path, (0, 0))
        with monkeypatch.context() as patch:
            patch.setattr(Task, "start", real)
            codes.append(run_main(weights, source, "out", *options))

    monkeypatch.setattr(Task, "start", start)
    code, text, err = program(source, "out", *options)
    assert (code, codes, err) == (0, [0], "") and text.count("1 skipped") == 2
    assert before == {path: path.read_bytes() for path in before}
    assert files(tmp_path / "out") == ["classes.csv", "deep/a.png"]
    if options:
        assert json.loads((tmp_path / "s.json").read_text())["run"]["skipped"] == 1


def test_what_another_run_wrote_since_the_first_look_is_not_mixed(
    tmp_path, weights, program, monkeypatch
):
    """Both find no folder, so there is nothing yet that the first could lock."""
    source, out = save(tmp_path / "in/a.png"), tmp_path / "out"
    real = Task.start

    def start(task):
        with monkeypatch.context() as patch:
            patch.setattr(Task, "start", real)
            assert run_main(weights, source, out, "--scales", "1") == 0
        real(task)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "start", start)
        message = refusal(weights, source, out)
    assert message == f"another run of infer.py has written into {out} meanwhile: start again"
    assert "1 skipped" in program(source, out, "--scales", "1")[1]


def test_a_lock_is_none_where_there_is_nothing_to_lock(tmp_path, monkeypatch):
    assert FolderLock(tmp_path / "absent").take(alone=True)

    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    lock = FolderLock(tmp_path)
    assert lock.take(alone=True) and FolderLock(tmp_path).take(alone=True)
    lock.release()
