"""A training killed at any point ends as if it had not been killed.

Most kills are of forks of one process that has imported PyTorch already, see
tests/helpers/killing.py; two are of train.py as a user starts it.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from cosa.checkpoint import read
from cosa.training.run_folder import RunFolder
from tests.helpers.tiny import ROOT
from tests.helpers.training import RANDOM, assert_equal_runs, configure, environment, without_time

KEEP = 2


def configuration(folder):
    return configure(
        folder, model=RANDOM,
        train={"iterations": 9, "evaluate_every": 4, "checkpoint_every": 2,
               "keep_checkpoints": KEEP},
        evaluate={"batch_size": 2, "scales": [1.0], "panels": 1, "image_size": 48},
    )


def train_with_deaths(*jobs):
    """For each (folder, deaths) what tests/helpers/killing.py says, and the run folder."""
    runs = [RunFolder(folder / "runs" / "tiny") for folder, _ in jobs]
    orders = [{"config": configuration(folder), "folder": str(run.path), "deaths": deaths}
              for (folder, deaths), run in zip(jobs, runs, strict=True)]
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "killing.py")]
    done = subprocess.run(command, env=environment(), input=json.dumps(orders), text=True,
                          capture_output=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    for end in (end for ends in answers for end in ends):
        assert end["killed"] or end["code"] == 0, f"{end}\n{done.stderr}"
        assert len(end["checkpoints"]) <= KEEP, end
        assert not end["checkpoints"] or end["checkpoints"][0] == "last.pth", end
    assert all(ends[-1]["code"] == 0 for ends in answers)
    return list(zip(answers, runs, strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing killed, and the seconds that it took."""
    [(ends, run)] = train_with_deaths((tmp_path_factory.mktemp("whole"), []))
    return run, ends[0]["seconds"]


def assert_same(run, whole):
    """Everything but times and the place of the folder is the same, bit by bit."""
    assert_equal_runs(run, whole)
    mine, theirs = read(run.best), read(whole.best)
    assert mine["about"]["thresholds"] == theirs["about"]["thresholds"]
    assert all(torch.equal(value, theirs["assignment"][key])
               for key, value in mine["assignment"].items())
    scores, others = ([without_time(line) for line in r.read_evaluations()] for r in (run, whole))
    assert scores == others
    names, expected = (sorted(path.name for path in r.path.rglob("*")) for r in (run, whole))
    assert names == expected, "the same files, and nothing of the killed ones"


def draw_deaths(seed, count, seconds):
    """Deaths of all kinds at random points; the first ones before the first checkpoint."""
    draw = random.Random(seed)
    kinds = [lambda: f"change:{draw.randint(1, 60)}", lambda: f"save:{draw.randint(1, 3)}",
             lambda: f"log:{draw.randint(1, 3)}", lambda: f"evaluate:{draw.randint(1, 6)}",
             lambda: f"after:{draw.uniform(0, seconds):.3f}"]
    order = [kinds[i % len(kinds)] for i in range(count - 3)]
    draw.shuffle(order)
    # In the making of the folder, before and within the first checkpoint.
    return [f"change:{draw.randint(3, 5)}", "log:2", "save:1", *(kind() for kind in order)]


def test_a_run_killed_many_times_equals_an_uninterrupted_one(whole, tmp_path):
    reference, seconds = whole
    [(ends, run)] = train_with_deaths((tmp_path, draw_deaths(5, 15, seconds)))
    killed = [end["death"].split(":")[0] for end in ends if end["killed"]]
    assert len(killed) >= 10 and set(killed) == {"change", "save", "log", "evaluate", "after"}
    assert not ends[0]["checkpoints"] and not ends[1]["checkpoints"], "nothing was saved yet"
    assert_same(run, reference)


def test_processes_killed_from_outside_equal_an_uninterrupted_one(whole, tmp_path):
    run = RunFolder(tmp_path / "runs" / "tiny")
    arguments = [configuration(tmp_path)]
    for lines in (3, 7, None):  # the kill comes somewhere after so many logged iterations
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        with open(tmp_path / "output", "w+") as output, subprocess.Popen(
            command, env=environment(), stdout=output, stderr=output
        ) as process:
            deadline = time.monotonic() + 300
            while lines and process.poll() is None and time.monotonic() < deadline:
                if run.metrics.exists() and run.metrics.read_text().count("\n") >= lines:
                    process.kill()
                time.sleep(0.002)
            code = process.wait(300)
            output.seek(0)
            assert code == (-signal.SIGKILL if lines else 0), output.read()
        arguments = ["--resume", str(run.path)]
    assert_same(run, whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_long_chains_of_kills(whole, tmp_path, seed):
    [(ends, run)] = train_with_deaths((tmp_path, draw_deaths(seed, 40, whole[1])))
    assert sum(end["killed"] for end in ends) >= 10
    assert_same(run, whole[0])


@pytest.mark.slow
def test_a_kill_at_each_change_of_the_folder(whole, tmp_path):
    """Of a new run and of the one that resumes it."""
    first, killed = 1, True
    while killed:
        steps = range(first, first + 20)
        done = train_with_deaths(*((tmp_path / f"{k}", [f"change:{k}"] * 2) for k in steps))
        for _, run in done:
            assert_same(run, whole[0])
        first, killed = steps.stop, done[-1][0][0]["killed"]
        shutil.rmtree(tmp_path)
    assert first > 50
