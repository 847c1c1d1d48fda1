import json
import sys
import threading
import time

import pytest
import torch

from cosa.benchmark.campaigns.campaign import machines_of
from cosa.benchmark.campaigns.runner import MARKER, Run, Runner
from cosa.benchmark.stamp import Revision
from cosa.config import load_config
from cosa.core.device import machine
from cosa.core.errors import UserError

REVISION = Revision("0123456789abcdef", "")
OTHER = Revision("fedcba9876543210", "")


def fake_run(tmp_path, code, name="row-seed0", *overrides, revision=REVISION):
    config = load_config(None, [f"output={json.dumps(str(tmp_path))}", f"name={name}",
                                "model.pretrained=false", *overrides])
    return Run("row", config, ((sys.executable, "-c", code, str(tmp_path / name)),), revision)


COUNT = "import sys; print('working'); open(sys.argv[1] + '/../starts', 'a').write('x')"


def starts(tmp_path):
    path = tmp_path / "starts"
    return len(path.read_text()) if path.exists() else 0


def test_finished_runs_are_kept_and_half_done_ones_start_over(tmp_path):
    run = fake_run(tmp_path, COUNT)
    Runner(1, 1).complete([run])
    assert starts(tmp_path) == 1 and run.log.read_text() == "working\n"
    Runner(1, 1).complete([run])
    assert starts(tmp_path) == 1
    other_workers = fake_run(tmp_path, COUNT, "row-seed0", "data.workers=3")
    Runner(2, 1).complete([other_workers])
    assert starts(tmp_path) == 1

    marker = run.folder / MARKER
    marker.write_text(marker.read_text().replace("true", "false", 1))
    (run.folder / "last.pth").write_text("half")
    Runner(1, 1).complete([run])
    assert starts(tmp_path) == 2 and not (run.folder / "last.pth").exists()


def test_nothing_of_others_is_deleted_or_mixed_in(tmp_path):
    run = fake_run(tmp_path, COUNT)
    run.folder.mkdir()
    (run.folder / "mine").write_text("precious")
    with pytest.raises(UserError, match="not made by this program"):
        Runner(1, 1).complete([run])
    assert (run.folder / "mine").read_text() == "precious"

    Runner(1, 1).complete([fake_run(tmp_path, COUNT, "other")])
    with pytest.raises(UserError, match="another configuration"):
        Runner(1, 1).complete([fake_run(tmp_path, COUNT, "other", "optimizer.lr=1e-3")])
    assert starts(tmp_path) == 1


def test_other_weights_are_another_run(tmp_path):
    weights = tmp_path / "encoder.bin"
    weights.write_bytes(b"one")
    options = ("model.pretrained=true", f"model.weights={json.dumps(str(weights))}")
    run = fake_run(tmp_path, COUNT, "row-seed0", *options)
    Runner(1, 1).complete([run])
    assert run.is_finished()
    weights.write_bytes(b"other")
    with pytest.raises(UserError, match="other weights"):
        run.is_finished()


def test_a_failure_stops_the_others_and_names_its_log(tmp_path):
    bad = fake_run(tmp_path, "import sys; print('error: no luck'); sys.exit(2)", "bad")
    slow = fake_run(tmp_path, "import time; time.sleep(60)", "slow")
    later = fake_run(tmp_path, COUNT, "later")
    started = time.monotonic()
    with pytest.raises(UserError, match=r"bad failed with exit code 2 \(error: no luck\).*bad.log"):
        Runner(2, 1).complete([slow, bad, later])
    assert time.monotonic() - started < 20
    assert not slow.is_finished() and starts(tmp_path) <= 1


def test_runs_go_in_parallel_with_their_share_of_threads(tmp_path):
    code = "import os; print(os.environ['OMP_NUM_THREADS'])"
    runs = [fake_run(tmp_path, code, name) for name in "ab"]
    before = threading.active_count()
    Runner(2, 3).complete(runs)
    assert [run.log.read_text() for run in runs] == ["3\n", "3\n"]
    assert threading.active_count() == before


@pytest.mark.parametrize("other, words", [
    (OTHER, r"\(revision 0123456789; now revision fedcba9876\)"),
    (Revision(REVISION.commit, "9" * 64), r"now revision 0123456789 \(modified\) \[9999999999\]\)"),
])
def test_finished_runs_of_another_revision_are_refused(tmp_path, other, words):
    Runner(1, 1).complete([fake_run(tmp_path, COUNT)])
    with pytest.raises(UserError, match=f"{words}: choose another --output, or delete"):
        Runner(1, 1).complete([fake_run(tmp_path, COUNT, revision=other)])
    assert starts(tmp_path) == 1
    Runner(1, 1).complete([fake_run(tmp_path, COUNT)])
    assert starts(tmp_path) == 1


def test_finished_runs_that_name_no_revision_are_refused(tmp_path):
    run = fake_run(tmp_path, COUNT)
    Runner(1, 1).complete([run])
    marker = json.loads((run.folder / MARKER).read_text())
    del marker["identity"]["revision"]
    (run.folder / MARKER).write_text(json.dumps(marker))
    with pytest.raises(UserError, match="another state of the program .of an unknown revision;"):
        Runner(1, 1).complete([run])


def test_half_done_runs_of_another_revision_start_over(tmp_path):
    code = f"{COUNT}; sys.exit(len(open(sys.argv[1] + '/../starts').read()) == 2)"
    runs = [fake_run(tmp_path, code, name) for name in ("a", "b")]
    with pytest.raises(UserError, match="b failed"):
        Runner(1, 1).complete(runs)
    # The missing run alone is made.
    Runner(1, 1).complete(runs)
    assert starts(tmp_path) == 3
    other = fake_run(tmp_path, code, "c", revision=OTHER)
    other.start_afresh()
    Runner(1, 1).complete([fake_run(tmp_path, code, "c")])
    assert starts(tmp_path) == 4


class Tree:
    """A program that changes at a certain look at it."""

    def __init__(self, fine):
        self.fine, self.looks = fine, 0

    def check(self):
        self.looks += 1
        if self.looks > self.fine:
            raise UserError("the program was changed")


@pytest.mark.parametrize("fine, finished", [(0, []), (1, []), (2, ["a"]), (3, ["a"])])
def test_a_change_of_the_program_stops_the_runs(tmp_path, fine, finished):
    """Looks are before and after each command; a run during which it changed is not finished."""
    runs = [fake_run(tmp_path, COUNT, name) for name in "abc"]
    with pytest.raises(UserError, match="the program was changed"):
        Runner(1, 1, Tree(fine).check).complete(runs)
    done = [json.loads((run.folder / MARKER).read_text())["finished"] for run in runs
            if run.folder.exists()]
    assert done.count(True) == len(finished) and not runs[2].folder.exists()
    assert [run.config.name for run in runs if run.is_finished()] == finished


def test_a_run_tells_on_which_machine_it_was_made(tmp_path):
    runs = [fake_run(tmp_path, "", f"run{number}") for number in range(3)]
    Runner(1, 1, machine=machine(torch.device("cpu"))).complete(runs)
    here = runs[0].made_on()
    assert "PyTorch" in here and machines_of(runs, "elsewhere") == here
    marker = json.loads((runs[0].folder / MARKER).read_text())
    (runs[0].folder / MARKER).write_text(json.dumps({**marker, "machine": "a GPU"}))
    assert runs[0].is_finished()
    assert machines_of(runs, here) == f"2 runs on {here}; 1 run on a GPU"
    del marker["machine"]
    (runs[1].folder / MARKER).write_text(json.dumps(marker))
    assert machines_of(runs[1:2], "elsewhere") == "elsewhere"
