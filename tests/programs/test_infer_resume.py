"""infer.py, run again: what counts as finished, and what does not."""

import json
import os
import sys

import numpy as np
import pytest
from PIL import Image, ImageFile

from cosa.core.files import TEMPORARY
from cosa.inference import finished, outputs
from cosa.inference.finished import find_finished
from cosa.inference.jobs import plan
from tests.helpers.inference import (
    ALL,
    PLAIN,
    SIZE,
    files,
    read,
    refusal,
    run_main,
    save,
    save_smooth,
    write_weights,
)
from tests.helpers.released import make_state, save_release


def test_files_of_unknown_origin_are_not_vouched_for(tmp_path, weights, program, monkeypatch):
    for name in "ab":
        save(tmp_path / f"in/{name}.jpg")
    out = tmp_path / "out"
    foreign = save(out / "b.png", (20, 12), "L").read_bytes()
    message = (
        f"{out} holds masks of unknown origin, such as {out / 'b.png'}: --overwrite or another "
        "--output"
    )
    assert refusal(weights, tmp_path / "in", out) == message
    assert files(out) == ["b.png"] and (out / "b.png").read_bytes() == foreign
    # Nobody minds another kind of file, or an image whose mask is not there.
    assert "2 done" in program(tmp_path / "in", out, "--save", "cam")[1]
    assert refusal(weights, tmp_path / "in", out) == message
    # Until the last foreign file is overwritten, none is passed off as ours.
    with monkeypatch.context() as patch:
        def interrupted(job, *arguments):
            raise KeyboardInterrupt

        patch.setattr(outputs, "write", interrupted)
        assert program(tmp_path / "in", out, "--overwrite")[0] == 130
    assert (out / "b.png").read_bytes() == foreign
    assert json.loads((out / ".cosa.json").read_text())["mask"] == {"weights_sha256": "several"}
    assert "masks made with other weights or settings" in refusal(weights, tmp_path / "in", out)
    assert "2 done" in program(tmp_path / "in", out, "--overwrite")[1]
    assert "2 skipped" in program(tmp_path / "in", out)[1]


def test_a_copy_without_the_record_is_of_unknown_origin(tmp_path, weights, program):
    save(tmp_path / "in/a.jpg")
    assert program(tmp_path / "in", tmp_path / "out")[0] == 0
    (tmp_path / "out/.cosa.json").unlink()
    assert "unknown origin" in refusal(weights, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("kind", PLAIN)
def test_empty_files_are_not_finished(tmp_path, program, kind):
    for name in "ab":
        save_smooth(tmp_path / f"in/{name}.png", seed=ord(name))
    out = tmp_path / "out"
    options = ("--save", kind)
    assert program(tmp_path / "in", out, *options)[0] == 0
    path = out / f"a{PLAIN[kind].suffix}"
    content = path.read_bytes()
    path.write_bytes(b"")
    code, text, _ = program(tmp_path / "in", out, *options)
    assert code == 0 and "1 done" in text and "1 skipped" in text
    assert path.read_bytes() == content or path.suffix == ".npz"  # zip: with the time
    assert path.stat().st_size == len(content)


@pytest.mark.parametrize("kind", PLAIN)
def test_results_of_a_photograph_that_has_changed_its_size_are_redone(tmp_path, program, kind):
    save_smooth(tmp_path / "in/a.png", (40, 30))
    save_smooth(tmp_path / "in/b.png", (40, 30))
    out, options = tmp_path / "out", ("--save", kind)
    assert program(tmp_path / "in", out, *options)[0] == 0
    save_smooth(tmp_path / "in/a.png", (30, 40))
    code, text, _ = program(tmp_path / "in", out, *options)
    assert code == 0 and "1 done" in text and "1 skipped" in text
    jobs = plan(str(tmp_path / "in"), out, (kind,))
    assert find_finished(jobs) == [True, True]
    assert "2 skipped" in program(tmp_path / "in", out, *options)[1]
    if kind == "mask":
        assert read(out / "a.png").shape == (40, 30)


def test_a_turned_photograph_fits_its_mask(tmp_path, program):
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("a.jpg", "b.png", "c.tif", "d.webp"):
        save(tmp_path / "in" / name, (20, 12), exif=turned)
    assert program(tmp_path / "in", tmp_path / "out")[0] == 0
    assert read(tmp_path / "out/a.png").shape == (20, 12)
    assert "4 skipped" in program(tmp_path / "in", tmp_path / "out")[1]


def test_looking_for_finished_files_decodes_none(tmp_path, program, monkeypatch):
    save(tmp_path / "in/a.jpg")
    assert program(tmp_path / "in", tmp_path / "out", *ALL)[0] == 0
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(outputs, "read_image", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(finished, "read_mask", lambda *_: pytest.fail("decoded"))
    assert find_finished(plan(str(tmp_path / "in"), tmp_path / "out", PLAIN)) == [True]


def test_what_a_killed_program_left_is_removed(tmp_path, program):
    save(tmp_path / "in/deep/a.jpg")
    out = tmp_path / "out"
    assert program(tmp_path / "in", out)[0] == 0
    left = [folder / TEMPORARY.format("0") for folder in (out, out / "deep", tmp_path / "json")]
    for outcome in ("1 skipped", "1 done"):  # also by a run that has nothing else to do
        for path in left:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"half")
            os.utime(path, (0, 0))
        code, text, _ = program(tmp_path / "in", out, "--json", tmp_path / "json/s.json")
        assert code == 0 and outcome in text and not any(path.exists() for path in left)
        (out / "deep/a.png").unlink()


@pytest.mark.parametrize("value", [255, 4])
def test_masks_with_other_labels_are_that_images_failure(tmp_path, program, value):
    for name in "ab":
        save(tmp_path / f"in/{name}.jpg", (8, 6))
        save(tmp_path / f"truth/{name}.png", (8, 6), "L").write_bytes(b"")
        Image.fromarray(np.ones((6, 8), np.uint8)).save(tmp_path / f"truth/{name}.png")
    out = tmp_path / "out"
    assert program(tmp_path / "in", out)[0] == 0
    Image.fromarray(np.full((6, 8), value, np.uint8)).save(out / "a.png")
    for options in (("--json", tmp_path / "s.json"), ("--evaluate", tmp_path / "truth")):
        code, text, err = program(tmp_path / "in", out, *options)
        assert code == 1 and "1 skipped" in text and "1 failed" in text
        assert err.startswith(f"failed: {out / 'a.png'}: the mask holds the value {value}")
        assert "delete it, or use --overwrite" in err and err.count("\n") == 1
    assert "1 images scored" in text
    first, second = json.loads((tmp_path / "s.json").read_text())["images"]
    assert f"value {value}" in first["error"] and second["error"] is None


def test_changed_labels_name_the_remedy(tmp_path, weights, program):
    for name in "ab":
        save(tmp_path / f"in/{name}.jpg")
    labels = tmp_path / "labels.csv"
    labels.write_text("image,labels\na.jpg,cat\n")
    options = ("--labels", labels)
    code, _, err = program(tmp_path / "in", tmp_path / "out", *options)
    assert code == 1 and "b.jpg has no row" in err and "--overwrite or another --output" in err
    labels.write_text("image,labels\na.jpg,cat\nb.jpg,ship\n")
    assert refusal(weights, tmp_path / "in", tmp_path / "out", *options) == (
        f"{tmp_path / 'out'} holds masks made with other settings (labels: another file, or the "
        "file has changed): --overwrite or another --output"
    )
    assert "2 done" in program(tmp_path / "in", tmp_path / "out", *options, "--overwrite")[1]


def test_released_weights_without_all_heads_go_on(tmp_path, capfd):
    """What is missing in the file gets the same numbers each time."""
    state = make_state()
    del state["aux_classifier.weight"]
    save_release(tmp_path / "voc.pth", state, aux_layer=-3)
    for k in range(2):
        save(tmp_path / f"in/{k}.jpg")
        options = ("--size", SIZE, "--scales", "1")
        assert run_main(tmp_path / "voc.pth", tmp_path / "in", tmp_path / "out", *options) == 0
    assert "1 done" in (out := capfd.readouterr().out) and "1 skipped" in out


def test_masks_of_the_rest_of_a_folder_are_not_vouched_for(tmp_path, weights, program):
    for k in range(3):
        save(tmp_path / f"in/{k}.jpg")
    out, single = tmp_path / "out", ("--scales", "1", "--no-flip", "--mode", "slide")
    assert program(tmp_path / "in", out, "--overlay")[0] == 0
    old = (out / "1.png").read_bytes()
    assert program(tmp_path / "in/0.jpg", out, "--overwrite", *single)[0] == 0
    other = "masks made with other weights or settings"
    assert other in refusal(weights, tmp_path / "in", out, *single)
    assert other in refusal(weights, tmp_path / "in", out)
    found = refusal(weights, tmp_path / "in/0.jpg", out, *single)
    assert f"{other} (also of other images, such as {out}" in found
    assert (out / "1.png").read_bytes() == old
    assert "3 done" in program(tmp_path / "in", out, "--overwrite", *single)[1]
    assert "3 skipped" in program(tmp_path / "in", out, *single)[1]


def test_foreign_masks_of_other_images_are_not_vouched_for_either(tmp_path, weights, program):
    for k in range(3):
        save(tmp_path / f"in/{k}.jpg")
    out = tmp_path / "out"
    foreign = save(out / "1.png", (20, 12), "L").read_bytes()
    for source in ("in/0.jpg", "in"):
        assert "unknown origin, such as " + str(out / "1.png") in refusal(
            weights, tmp_path / source, out)
    assert "1 done" in program(tmp_path / "in/0.jpg", out, "--overwrite")[1]
    assert "other weights or settings" in refusal(weights, tmp_path / "in", out)
    assert (out / "1.png").read_bytes() == foreign
    assert "3 done" in program(tmp_path / "in", out, "--overwrite")[1]
    assert "3 skipped" in program(tmp_path / "in", out)[1]


def test_images_and_true_masks_below_the_output_are_no_results(tmp_path, program):
    save(tmp_path / "in/a.png", (8, 6))
    Image.fromarray(np.ones((6, 8), np.uint8)).save(save(tmp_path / "truth/a.png", (8, 6)))
    options = ("--evaluate", tmp_path / "truth")
    assert "1 done" in program(tmp_path / "in", tmp_path, *options)[1]
    assert "1 skipped" in program(tmp_path / "in", tmp_path, *options)[1]
    assert "1 done" in program(tmp_path / "in", tmp_path, *options, "--overwrite", "--no-flip")[1]
    assert "1 skipped" in program(tmp_path / "in", tmp_path, *options, "--no-flip")[1]


def test_a_run_that_has_made_nothing_binds_nobody(tmp_path, weights, program):
    source, out = tmp_path / "in/a.jpg", tmp_path / "out"
    save(source)
    content = source.read_bytes()
    source.write_bytes(b"no image")
    assert program(source, out, "--overlay")[0] == 1
    source.write_bytes(content)
    assert "1 done" in program(source, out, "--size", 16)[1]
    # The mask does bind, overlays are not there yet.
    assert "settings (size)" in refusal(weights, source, out, "--size", SIZE)
    assert program(source, out, "--save", "overlay", "--size", 24)[0] == 0
    other = write_weights(tmp_path / "other.pt", classes=("a", "b"))
    assert "made with other weights" in refusal(other, source, out)
    for name in ("a.png", "a.overlay.png"):
        (out / name).unlink()
    assert run_main(other, source, out) == 0


def test_the_record_is_complete_though_nobody_reads_the_output(tmp_path, program, monkeypatch):
    save(tmp_path / "in/a.jpg")
    assert program(tmp_path / "in", tmp_path / "out")[0] == 0

    def closed(*args, **kwargs):
        if kwargs["file"] is sys.stdout:
            raise BrokenPipeError

    with monkeypatch.context() as patch, pytest.raises(BrokenPipeError):
        patch.setattr("builtins.print", closed)
        program(tmp_path / "in", tmp_path / "out", "--size", 16, "--overwrite")
    assert "1 skipped" in program(tmp_path / "in", tmp_path / "out", "--size", 16)[1]
