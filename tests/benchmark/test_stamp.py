import datetime
import os
import shutil
import subprocess

import pytest
import torch

from cosa.benchmark import stamp
from cosa.benchmark.stamp import Revision, revision
from cosa.core.errors import UserError

WHO = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER")
       for key, value in {"NAME": "Nobody", "EMAIL": "nobody@example.org"}.items()}


def git(folder, *arguments):
    elsewhere = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"}
    environment = {key: value for key, value in os.environ.items() if key not in elsewhere}
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, text=True,
                          env=environment | WHO, capture_output=True)
    return done.stdout.strip()


@pytest.fixture
def program(tmp_path):
    """A checkout of a small program, with all committed."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "program"
    for name in ("train.py", "cosa/cam.py", "configs/demo.yaml", "docs/benchmarks.md", "README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} as it was\n")
    (folder / ".gitignore").write_text("runs/\n*.pyc\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--no-verify", "--no-gpg-sign", "-m", "All")
    return folder


def look(folder, report="docs/benchmarks.md"):
    return revision(folder / report, folder)


def write(folder, name, text="changed\n"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def test_a_clean_tree_is_its_commit(program):
    commit = git(program, "rev-parse", "HEAD")
    assert look(program) == Revision(commit, "")
    assert str(look(program)) == look(program).in_full() == f"revision {commit[:10]}"


@pytest.mark.parametrize("name", ["train.py", "cosa/cam.py", "configs/demo.yaml", "cosa/new.py"])
def test_what_the_program_is_made_of_modifies_it(program, name):
    clean = look(program)
    write(program, name)
    first = look(program)
    assert first.commit == clean.commit and first != clean
    assert str(first) == f"{clean} (modified)"
    assert look(program) == first
    write(program, name, "changed again\n")
    assert look(program) != first and look(program).in_full() != first.in_full()
    write(program, name)
    assert look(program) == first


def test_staged_changes_count_like_others(program):
    write(program, "train.py")
    before = look(program)
    git(program, "add", ".")
    assert look(program) == before


def test_a_deleted_file_modifies(program):
    (program / "cosa" / "cam.py").unlink()
    assert look(program).changes


@pytest.mark.parametrize("name", [
    "docs/benchmarks.md", "docs/new.md", "README.md", "runs/a/x.py", "cosa/cam.pyc",
    "out/ablation.json", "out/row-seed0/config.yaml",
])
def test_what_benchmarks_write_and_documents_do_not_modify(program, name):
    clean = look(program)
    write(program, name)
    assert look(program) == clean


def test_the_report_does_not_modify_wherever_it_is(program, tmp_path):
    write(program, "tables[1].txt", "old\n")
    git(program, "add", ".")
    git(program, "commit", "--quiet", "--no-verify", "--no-gpg-sign", "-m", "Report")
    write(program, "tables[1].txt")
    assert look(program).changes
    assert not look(program, "tables[1].txt").changes
    assert look(program, tmp_path / "elsewhere.md").changes


def test_another_commit_is_another_revision(program):
    before = look(program)
    write(program, "train.py")
    git(program, "commit", "--quiet", "--no-verify", "--no-gpg-sign", "-am", "More")
    assert look(program) != before and not look(program).changes


def test_without_a_checkout_the_code_tells(program):
    for folder in (program / "cosa", program.parent):
        assert str(look(folder)).startswith("code ")
    (program / ".git").rename(program / "not-git")
    before = look(program)
    assert str(before) == f"code {before.changes[:10]}" and before == look(program)
    write(program, "docs/benchmarks.md")
    assert look(program) == before
    write(program, "cosa/cam.py")
    assert look(program) != before


def test_without_git_the_code_tells(program, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert str(look(program)).startswith("code ")


def test_a_variable_of_git_does_not_lead_elsewhere(program, monkeypatch):
    before = look(program)
    monkeypatch.setenv("GIT_DIR", str(program.parent))
    assert look(program) == before


def test_what_git_cannot_tell_is_a_sentence(program):
    (program / ".git" / "index").write_bytes(b"damaged")
    with pytest.raises(UserError, match="git cannot tell what has changed"):
        look(program)


def test_the_line_says_what_a_reader_needs(monkeypatch):
    monkeypatch.setattr(stamp, "revision", lambda report: Revision("ab" * 20, "c" * 64))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    started = stamp.begin("crf", ["my photos", "--limit", "3"], "report.md")
    facts = started.facts(torch.device("cpu"))
    command, told = stamp.heading(facts, "2 threads", "10 photographs").split("\n\n")
    assert command == "`python -m cosa.benchmark crf 'my photos' --limit 3`"
    machine = stamp.machine(torch.device("cpu"))
    assert told == (f"{datetime.date.today().isoformat()}; {machine}; "
                    "revision ababababab (modified); 2 threads; 10 photographs.")
    # An argument is text, whatever is in it.
    facts["command"] = stamp.begin("crf", ["a\n``b\x1b[2J"], "report.md").command
    command, told = stamp.heading(facts, "of c\n\nd").split("\n\n")
    assert command == r"``` python -m cosa.benchmark crf 'a\n``b\x1b[2J' ```"
    assert told.endswith(r"; of c\n\nd.")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert stamp.begin("crf", [], "report.md").command == (
        "OMP_NUM_THREADS=1 python -m cosa.benchmark crf"
    )


def test_a_change_since_the_start_is_a_sentence(monkeypatch):
    now = Revision("ab" * 20, "")
    monkeypatch.setattr(stamp, "revision", lambda report: now)
    started = stamp.begin("crf", [], "report.md")
    started.require_unchanged()
    now = Revision("ab" * 20, "c" * 64)
    with pytest.raises(UserError, match=r"from revision ababababab to .*\[cccccccccc\].*--output"):
        started.require_unchanged()
