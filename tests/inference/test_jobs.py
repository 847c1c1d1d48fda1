import errno
import glob
import os
from pathlib import Path

import pytest

from cosa.core.errors import UserError
from cosa.inference.jobs import plan
from cosa.inference.kinds import KINDS
from tests.helpers.inference import save


def sources(jobs):
    return [job.source.name for job in jobs]


def test_plan_of_globs(tmp_path, monkeypatch):
    for name in ("x/a.jpg", "x/b.png", "y/z/a.jpg", "y/c[1].jpg", "y/notes.txt", ".h/a.jpg"):
        save(tmp_path / name) if name[-1] == "g" else (tmp_path / name).write_text("")
    jobs = plan(f"{tmp_path}/*/*.jpg", "out")
    assert [str(job.results["mask"]) for job in jobs] == ["out/x/a.png", "out/y/c[1].png"]
    assert sources(plan(f"{tmp_path}/**/*", tmp_path / "out")) == [
        "a.jpg", "b.png", "c[1].jpg", "a.jpg",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert [str(job.results["mask"]) for job in plan("x/*.jpg", "out")] == ["out/a.png"]
    assert [str(job.results["mask"]) for job in plan("*/a.jpg", "out")] == ["out/x/a.png"]
    assert [str(job.results["mask"]) for job in plan("y/c[1].jpg", "out")] == ["out/c[1].png"]
    assert [str(job.results["mask"]) for job in plan(".", "out")][0] == "out/x/a.png"


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_plan_follows_links_but_not_in_circles(tmp_path):
    save(tmp_path / "store/a.jpg")
    save(tmp_path / "in/b.jpg")
    (tmp_path / "in/linked").symlink_to(tmp_path / "store")
    (tmp_path / "in/circle").symlink_to(tmp_path / "in")
    (tmp_path / "in/broken.jpg").symlink_to(tmp_path / "absent.jpg")
    assert [job.results["mask"] for job in plan(str(tmp_path / "in"), "out")] == [
        Path("out/b.png"),
        Path("out/broken.png"),  # its image fails, which is better than to be left out unsaid
        Path("out/linked/a.png"),
    ]


def test_plan_keeps_little_of_each_image(tmp_path):
    for k in range(3):
        save(tmp_path / f"in/a/{k}.jpg")
    jobs = plan(str(tmp_path / "in"), tmp_path / "out", save=("mask", "overlay"))
    assert jobs.files == ["a/0.jpg", "a/1.jpg", "a/2.jpg"]
    assert jobs[1].source == tmp_path / "in/a/1.jpg" and jobs[1].name == "a/1.jpg"
    assert jobs[1].results == {
        "mask": tmp_path / "out/a/1.png", "overlay": tmp_path / "out/a/1.overlay.png"
    }
    save(tmp_path / "out/a/1.png")
    assert not any(job.finished for job in jobs)
    save(tmp_path / "out/a/1.overlay.png")
    assert [job.finished for job in jobs] == [False, True, False]
    assert sources(jobs.only([True, False, True])) == ["0.jpg", "2.jpg"]


def test_plan_refuses_two_inputs_of_one_name(tmp_path):
    a, b = save(tmp_path / "in/a.jpg"), save(tmp_path / "in/a.png")
    with pytest.raises(UserError, match="both become") as caught:
        plan(str(tmp_path / "in"), tmp_path / "out")
    assert str(a) in str(caught.value) and str(b) in str(caught.value)
    b.rename(tmp_path / "in/a.overlay.png")
    assert len(plan(str(tmp_path / "in"), tmp_path / "out")) == 2
    with pytest.raises(UserError, match="both become"):
        plan(str(tmp_path / "in"), tmp_path / "out", save=("mask", "overlay"))


def test_plan_never_overwrites_images(tmp_path):
    png = save(tmp_path / "in/a.png")
    with pytest.raises(UserError, match=r"in/a\.png would be overwritten"):
        plan(str(png), tmp_path / "in")
    for source in (tmp_path / "in", tmp_path / "in/*"):
        with pytest.raises(UserError, match="choose another --output"):
            plan(str(source), tmp_path / "x/../in")
    save(tmp_path / "in/in/b.jpg")  # as in/b.png of the folder above, another image
    save(tmp_path / "in/b.png")
    with pytest.raises(UserError, match=r"in/b\.png would be overwritten"):
        plan(str(tmp_path / "in"), tmp_path)


def test_nothing_to_do_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/notes.txt").write_text("")
    for source in ("in", "in/*.jpg"):
        with pytest.raises(UserError, match="no image in"):
            plan(str(tmp_path / source), tmp_path / "out")
    with pytest.raises(UserError, match="absent does not exist"):
        plan(str(tmp_path / "absent"), tmp_path / "out")
    with pytest.raises(UserError, match="no image in .*absent is no folder; check the path"):
        plan(str(tmp_path / "absent/*.jpg"), tmp_path / "out")


GLOBS = ("", "/**/*.jpg", "/**", "/*/*.jpg", "/*/shut/*.jpg", "/*/shut/**/*", "/**/shut/*.jpg")


@pytest.mark.parametrize("end", GLOBS)
def test_folders_that_cannot_be_searched_are_told_of_in_globs_too(tmp_path, monkeypatch, end):
    """Root may search all, so the system's answer is made up."""
    for name in ("a/1.jpg", "b/shut/2.jpg"):
        save(tmp_path / "in" / name)
    shut = str(tmp_path / "in/b" if end == "/*/*.jpg" else tmp_path / "in/b/shut")
    real = os.scandir

    def scandir(path="."):
        if str(path) == shut:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError) as caught:
        plan(f"{tmp_path / 'in'}{end}", tmp_path / "out")
    assert str(caught.value) == (
        f"{shut} cannot be searched: Permission denied; change its rights, or leave it out"
    )
    # Nobody has to search what the pattern leaves out.
    assert sources(plan(f"{tmp_path / 'in'}/a/**/*.jpg", tmp_path / "out")) == ["1.jpg"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do all")
@pytest.mark.parametrize("rights", [0o000, 0o400, 0o100])
def test_missing_rights_are_told(tmp_path, rights):
    image = save(tmp_path / "in/a/shut/1.jpg")
    image.parent.chmod(rights)
    try:
        for end in GLOBS:
            try:
                found = sources(plan(f"{tmp_path / 'in'}{end}", tmp_path / "out"))
                assert found == ["1.jpg"]  # which fails by itself
            except UserError as error:
                assert "cannot be searched" in str(error) or end == "/*/*.jpg"
    finally:
        image.parent.chmod(0o700)


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_globs_find_what_python_finds_but_follow_no_circle(tmp_path):
    for name in ("x/a.jpg", "x/y/b.jpg", "c.jpg", ".h/d.jpg", "x/.e.jpg", "[z]/f.jpg"):
        save(tmp_path / "in" / name)
    for pattern in ("**/*.jpg", "**", "*/*", "x/**/b.jpg", "*/y/*", "**/y/**", "[[]z]/*", "?.jpg",
                    "x/**/../*.jpg", "*/", "**x/*.jpg", "*/absent/*.jpg"):
        found = {path for path in glob.glob(f"{tmp_path}/in/{pattern}", recursive=True)
                 if os.path.isfile(path) and ".." not in path}
        if found:
            jobs = plan(f"{tmp_path}/in/{pattern}", tmp_path / "out")
            assert {str(job.source) for job in jobs} == found
        else:
            with pytest.raises(UserError, match="there is no image in"):
                plan(f"{tmp_path}/in/{pattern}", tmp_path / "out")
    (tmp_path / "in/x/circle").symlink_to(tmp_path / "in")
    assert len(plan(f"{tmp_path}/in/**/*.jpg", tmp_path / "out")) == 4


def test_every_kind_has_a_name_of_its_own(tmp_path):
    save(tmp_path / "in/a.b.jpg")
    (job,) = plan(str(tmp_path / "in"), "out", reversed(KINDS))
    assert {kind: path.name for kind, path in job.results.items()} == {
        "mask": "a.b.png",
        "overlay": "a.b.overlay.png",
        "cam": "a.b.cam.npz",
        "cpl": "a.b.cpl.png",
        "probabilities": "a.b.probabilities.npz",
        "index": "a.b.index.png",
        "regions": "a.b.regions.npz",
        "certainty": "a.b.certainty.npz",
    }


def test_plan_leaves_true_masks_out_and_never_overwrites_them(tmp_path):
    save(tmp_path / "data/a.jpg")
    save(tmp_path / "data/masks/a.png")
    assert len(plan(str(tmp_path / "data"), tmp_path / "out")) == 2
    jobs = plan(str(tmp_path / "data"), tmp_path / "out", masks=tmp_path / "data/masks")
    assert jobs.files == ["a.jpg"]
    for output in (tmp_path / "data/masks", tmp_path / "data/x/../masks"):
        with pytest.raises(UserError, match=r"masks/a\.png would be overwritten"):
            plan(str(tmp_path / "data"), output, masks=tmp_path / "data/masks")
    # Another kind of file takes no true mask's place.
    plan(str(tmp_path / "data"), tmp_path / "data/masks", ["cam"], tmp_path / "data/masks")
