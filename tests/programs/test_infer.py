"""The whole program with its default options."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import cosa
import cosa.inference.segmenter
from cosa.core.errors import UserError
from cosa.data.images import network_input
from cosa.inference.outcome import Outcome
from cosa.inference.pixels import argmax_at_size
from cosa.predict import multi_scale
from infer import main
from tests.helpers.inference import ROOT, SCALES, SIZE, files, read, save


@pytest.fixture(scope="module")
def other_weights(weights):
    """The same network, each of whose tensors is the same but for one number."""
    content = torch.load(weights, weights_only=True)
    content["assignment"]["decoder.conv8.weight"][0, 0, 0, 0] += 1
    path = weights.with_name("other.pt")
    torch.save(content, path)
    return path


def test_masks_without_any_class_are_told(tmp_path, weights, command_line):
    """As of a network that was trained for a few steps: its logits are all the same here."""
    content = torch.load(weights, weights_only=True)
    for name, tensor in content["assignment"].items():
        if name.startswith("decoder.conv8"):
            tensor.zero_()
    blank = tmp_path / "blank.pt"
    torch.save(content, blank)
    for k in range(3):
        save(tmp_path / f"in/{k}.png")

    def told(weights, *options):
        out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        code, _, err = command_line(
            "infer.py", tmp_path / "in", "--weights", weights, "--output", out, *options)
        assert code == 0
        return "note: all 3 masks are background alone" in err

    assert told(blank) and not told(weights)
    labels = tmp_path / "labels.csv"
    labels.write_text("image,labels\n0.png,\n1.png,\n2.png,\n")
    assert not told(blank, "--labels", labels), "the user has said so"
    (tmp_path / "in/2.png").unlink()
    assert not told(blank), "of two it may be true"


def test_hostile_images(tmp_path, program):
    exif = Image.Exif()
    exif[0x0112] = 6
    photos = tmp_path / "photos"
    expected = {
        save(photos / "turned.jpg", (20, 12), exif=exif): (20, 12),
        save(photos / "gray.png", mode="L"): (12, 20),
        save(photos / "rgba.png", mode="RGBA"): (12, 20),
        save(photos / "cmyk.jpg", mode="CMYK"): (12, 20),
        save(photos / "deep.png", mode="I;16"): (12, 20),
        save(photos / "thin.png", (1, 50)): (50, 1),
        save(photos / "flat.png", (50, 1)): (1, 50),
        save(photos / "dot.png", (1, 1)): (1, 1),
        save(photos / "a b/ünï 日本.JPEG", (33, 44)): (44, 33),
        save(photos / "a b/v1.2.png", (9, 8)): (8, 9),
    }
    whole = save(tmp_path / "whole.jpg", (64, 64)).read_bytes()
    (photos / "cut.jpg").write_bytes(whole[:1000])
    (photos / "text.jpg").write_text("not an image")
    (photos / "zero.png").write_bytes(b"")
    (photos / "notes.txt").write_text("not an image, and not meant to be one")
    save(photos / ".hidden.png")
    save(photos / ".cache/thumb.png")

    code, out, err = program(photos, tmp_path / "out", "--batch-size", "3", "--workers", "2")

    assert code == 1
    assert "10 done" in out and "0 skipped" in out and "3 failed" in out
    assert str(tmp_path / "out") in out
    lines = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 3
    for name in ("cut.jpg", "text.jpg", "zero.png"):
        assert sum(str(photos / name) in line for line in lines) == 1
    names = [path.relative_to(photos).with_suffix(".png") for path in expected]
    assert files(tmp_path / "out") == sorted([*map(str, names), "classes.csv"])
    for path, size in expected.items():
        mask = read(tmp_path / "out" / path.relative_to(photos).with_suffix(".png"))
        assert mask.shape == size and mask.max() <= 3


def test_masks_are_those_of_the_evaluation(tmp_path, program, weights):
    paths = [save(tmp_path / f"in/{k}.png", (50 + 9 * k, 41), seed=k) for k in range(5)]
    code, *_ = program(tmp_path / "in", tmp_path / "out", "--batch-size", "2")
    assert code == 0
    network = cosa.load(weights)
    seen = set()
    for path in paths:
        with Image.open(path) as image:
            square = network_input(image, SIZE)
            logits = multi_scale(network, square[None], SCALES, True).seg
            logits = F.interpolate(logits, image.size[::-1], mode="bilinear")[0]
        mask = read(tmp_path / "out" / path.name)
        assert (mask == logits.argmax(0).numpy()).mean() > 0.999
        seen |= set(np.unique(mask))
    assert len(seen) > 1  # else the comparison shows nothing


def test_options_of_the_prediction(tmp_path, program, weights):
    path = save(tmp_path / "a.png", (40, 30))
    options = ("--scales", "1.5", "--no-flip", "--size", "24")
    assert program(path, tmp_path / "out", *options)[0] == 0
    with Image.open(path) as image:
        square = network_input(image, 24)
    logits = multi_scale(cosa.load(weights), square[None], (1.5,), False).seg
    expected = argmax_at_size(logits[0], (30, 40)).numpy()
    assert np.array_equal(read(tmp_path / "out/a.png"), expected)
    assert program(path, tmp_path / "default")[0] == 0
    assert not np.array_equal(read(tmp_path / "default/a.png"), expected)


def test_thirty_megapixels(tmp_path, program):
    path = tmp_path / "wide.png"
    Image.new("L", (6000, 5000), 40).save(path, compress_level=1)
    code, out, _ = program(path, tmp_path / "out", "--scales", "1", "--no-flip")
    assert code == 0 and "1 done" in out
    with Image.open(tmp_path / "out/wide.png") as mask:
        assert mask.size == (6000, 5000)


def test_overlay_and_classes(tmp_path, program):
    path = save(tmp_path / "in/a/b.jpg", (30, 20))
    assert program(tmp_path / "in", tmp_path / "out", "--overlay")[0] == 0
    assert files(tmp_path / "out") == ["a/b.overlay.png", "a/b.png", "classes.csv"]
    mask = read(tmp_path / "out/a/b.png")
    with Image.open(tmp_path / "out/a/b.overlay.png") as blended, Image.open(path) as image:
        assert blended.mode == "RGB" and blended.size == (30, 20)
        changed = (np.asarray(blended) != np.asarray(image)).any(-1)
    assert not changed[mask == 0].any()
    with open(tmp_path / "out/classes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[1] == ["0", "background", "0", "0", "0"]
    assert rows[3] == ["2", "dog, big", "0", "128", "0"] and len(rows) == 5


def test_finished_files_are_skipped(tmp_path, program):
    for k in range(3):
        save(tmp_path / f"in/{k}.png")
    assert program(tmp_path / "in", tmp_path / "out")[0] == 0
    (tmp_path / "out/1.png").unlink()
    (tmp_path / "out/2.png").write_bytes(b"kept")
    code, out, _ = program(tmp_path / "in", tmp_path / "out")
    assert code == 0 and "1 done" in out and "2 skipped" in out
    assert (tmp_path / "out/2.png").read_bytes() == b"kept"
    _, out, _ = program(tmp_path / "in", tmp_path / "out")
    assert "0 done" in out and "3 skipped" in out
    _, out, _ = program(tmp_path / "in", tmp_path / "out", "--overlay")
    assert "3 done" in out  # a mask without the wanted overlay is not finished
    _, out, _ = program(tmp_path / "in", tmp_path / "out", "--overlay", "--overwrite")
    assert "3 done" in out and "0 skipped" in out
    assert read(tmp_path / "out/2.png").shape == (12, 20)


def test_masks_of_other_weights_are_not_mixed_with(
    tmp_path, program, weights, other_weights, capfd
):
    save(tmp_path / "in/a.png")
    save(tmp_path / "in/b.png")
    out = tmp_path / "out"

    def run(file, *options):
        command = [str(tmp_path / "in"), "--weights", str(file), "--output", str(out)]
        return main([*command, "--device", "cpu", *options]), capfd.readouterr().out

    assert run(weights)[0] == 0
    before = (out / "a.png").read_bytes()
    refused = f"{out} holds masks made with other weights: --overwrite or another --output"
    with pytest.raises(UserError) as caught:
        run(other_weights)
    assert str(caught.value) == refused and (out / "a.png").read_bytes() == before
    copy = weights.with_name("copy.pt")
    copy.write_bytes(weights.read_bytes())
    assert "2 skipped" in run(copy)[1]  # the weights count, not the file
    assert "2 done" in run(other_weights, "--overwrite")[1]
    assert "2 skipped" in run(other_weights)[1]
    with pytest.raises(UserError, match="other weights"):
        run(weights)
    (out / ".cosa.json").unlink()  # as in a copy without hidden files: the classes remain
    text = (out / "classes.csv").read_text(encoding="utf-8")
    (out / "classes.csv").write_text(text.replace("cat", "dog"), encoding="utf-8")
    with pytest.raises(UserError, match="other weights"):
        run(weights)


def test_interrupted_overwriting_is_not_taken_for_one_network(
    tmp_path, weights, other_weights, monkeypatch
):
    save(tmp_path / "in/a.png")
    save(tmp_path / "in/b.png")

    def run(file, *options):
        out = str(tmp_path / "out")
        command = [str(tmp_path / "in"), "--weights", str(file), "--output", out, *options]
        return main([*command, "--device", "cpu"])

    def interrupt(network, jobs, *_, **__):
        yield Outcome(jobs[0])
        raise KeyboardInterrupt

    assert run(weights) == 0
    with monkeypatch.context() as patch:
        patch.setattr("cosa.inference.program.segment_files", interrupt)
        assert run(other_weights, "--overwrite") == 130
    for file in (weights, other_weights):
        with pytest.raises(UserError, match="other weights"):
            run(file)
    assert run(weights, "--overwrite") == run(weights) == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_that_of_the_training(tmp_path, weights, monkeypatch, precision):
    content = torch.load(weights, weights_only=True)
    content["about"]["config"]["train"] |= {"precision": precision, "tf32": False}
    torch.save(content, tmp_path / "weights.pt")
    save(tmp_path / "a.png")
    seen = []
    real = cosa.inference.segmenter.multi_scale

    def spy(*arguments):
        seen.append(torch.is_autocast_enabled("cpu"))
        return real(*arguments)

    monkeypatch.setattr(cosa.inference.segmenter, "multi_scale", spy)
    monkeypatch.setattr("cosa.inference.program.allow_tf32", seen.append)
    out = str(tmp_path / "out")
    arguments = ["--weights", str(tmp_path / "weights.pt"), "--output", out, "--device", "cpu"]
    assert main([str(tmp_path / "a.png"), *arguments]) == 0
    assert seen == [False, precision == "bf16"]


def test_output_inside_the_input_is_not_read(tmp_path, program):
    save(tmp_path / "in/a.jpg")
    save(tmp_path / "in/sub/b.jpg")
    for _ in range(2):
        code, out, _ = program(tmp_path / "in", tmp_path / "in/sub/masks")
        assert code == 0 and "0 failed" in out
    assert "2 skipped" in out
    assert files(tmp_path / "in/sub/masks") == ["a.png", "classes.csv", "sub/b.png"]


def test_unwritable_output_is_reported_for_the_file(tmp_path, program):
    save(tmp_path / "in/a.jpg")
    save(tmp_path / "in/b/c.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/b").write_text("a file where a folder must be")
    code, out, err = program(tmp_path / "in", tmp_path / "out")
    assert code == 1 and "1 done" in out and "1 failed" in out
    assert f"failed: the result of {tmp_path / 'in/b/c.jpg'} cannot be written" in err
    assert files(tmp_path / "out") == ["a.png", "b", "classes.csv"]


def test_program_with_relative_paths(tmp_path, weights, command_line, monkeypatch):
    save(tmp_path / "in/a b/ü.jpg")
    monkeypatch.chdir(tmp_path)
    code, out, err = command_line(
        "infer.py", "in", "--weights", weights, "--output", "out", "--device", "cpu"
    )
    assert (code, err) == (0, "") and out.count("\n") == 1
    assert files(tmp_path / "out") == ["a b/ü.png", "classes.csv"]


def test_program_says_why_it_cannot_start(tmp_path, weights, command_line):
    save(tmp_path / "in/a.jpg")
    (tmp_path / "file").write_text("")
    (tmp_path / "bad.pt").write_bytes(b"not weights")
    wrong = {
        "absent.pt": (tmp_path / "in", tmp_path / "absent.pt", tmp_path / "out"),
        "bad.pt": (tmp_path / "in", tmp_path / "bad.pt", tmp_path / "out"),
        "--output": (tmp_path / "in", weights, tmp_path / "file"),
        "nowhere": (tmp_path / "nowhere", weights, tmp_path / "out"),
    }
    for name, (source, file, output) in wrong.items():
        with pytest.raises(UserError, match=f"^[^\n]*{name}[^\n]*$"):
            main([str(source), "--weights", str(file), "--output", str(output)])
    absent = tmp_path / "absent.jpg"
    code, out, err = command_line(
        "infer.py", absent, "--weights", weights, "--output", tmp_path / "out"
    )
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {absent} does not exist") and err.count("\n") == 1
    for options in (["--size", "0"], ["--scales", "-1"], ["--batch-size", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(["in", "--weights", "w", "--output", "o", *options])
        assert caught.value.code == 2
    with pytest.raises(UserError, match="device 'quantum'"):
        main([str(tmp_path / "in"), *f"--weights {weights} --output o --device quantum".split()])


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_interruption_leaves_nothing_half_written(tmp_path, weights):
    for k in range(300):
        save(tmp_path / f"in/{k:03}.png", (150, 100), seed=k)
    command = [sys.executable, ROOT / "infer.py", tmp_path / "in", "--weights", weights]
    command += ["--output", tmp_path / "out", "--device", "cpu", "--batch-size", "1"]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell lets what it runs in the background ignore the signal; that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("*.png")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err and "stopped" in err
    names = files(tmp_path / "out")
    assert 1 < len(names) < 301 and not [name for name in names if name.endswith(".tmp")]
    for name in names:
        if name.endswith(".png"):
            assert read(tmp_path / "out" / name).shape == (100, 150)


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu(tmp_path, weights):
    save(tmp_path / "in/a.png", (60, 50))
    for device in ("cpu", "cuda"):
        arguments = f"--weights {weights} --output {tmp_path / device} --device {device}"
        assert main([str(tmp_path / "in"), *arguments.split()]) == 0
    assert (read(tmp_path / "cpu/a.png") == read(tmp_path / "cuda/a.png")).mean() > 0.9
