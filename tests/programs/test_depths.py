"""The programs on images of 12 bits in files of 16, and on files of many bands."""

import json
import os
import re
import runpy
import shlex
import signal

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import cosa
import infer
import train
from cosa.checkpoint import load, read, save
from cosa.config import load_config
from cosa.data.images import network_input, read_image
from cosa.data.multiband import INSTALL
from cosa.data.reading import Reading
from cosa.inference import pipeline
from tests.helpers.deep_files import png16, tiff
from tests.helpers.inference import read as read_mask
from tests.helpers.inference import refusal, save_smooth, write_weights
from tests.helpers.tiny import ROOT
from tests.helpers.training import assert_equal_runs, configure, stop_after

TWELVE = (0, 4095)


def photographs(folder, count=6):
    """(h, w, 3) uint8 of soft blobs, and the same as 12 bits in PNG files of 16."""
    (folder / "in").mkdir(parents=True)
    made = []
    for number in range(count):
        save_smooth(folder / f"eight/{number}.png", (40, 40), seed=number)
        with Image.open(folder / f"eight/{number}.png") as image:
            made.append(np.asarray(image))
        deep = np.rint(made[-1] * (4095 / 255)).astype(np.uint16)
        (folder / f"in/{number}.png").write_bytes(png16(deep))
    return made


def masks(folder, count=6):
    return [read_mask(folder / f"{number}.png") for number in range(count)]


def test_a_folder_of_12_bits(command_line, weights, tmp_path):
    photographs(tmp_path)
    arguments = ["--weights", weights, "--device", "cpu", "--output"]
    for source, output, more in (("eight", "expected", ()), ("in", "dark", ()),
                                 ("in", "found", ("--value-range", *TWELVE, "--overlay"))):
        code, _, errors = command_line("infer.py", tmp_path / source, *arguments,
                                       tmp_path / output, *more)
        assert code == 0, errors
        warnings = [line for line in errors.splitlines() if line.startswith("warning: ")]
        if output == "dark":  # once, with the first file's name
            (line,) = warnings
            assert line.startswith(f"warning: {tmp_path / 'in'}/")
            assert "use a small part of 0..65535" in line and "--value-range LOW HIGH" in line
        else:
            assert warnings == []
    expected, dark, found = (masks(tmp_path / name) for name in ("expected", "dark", "found"))
    assert all(map(np.array_equal, expected, found))
    assert not all(map(np.array_equal, expected, dark))
    overlay = np.asarray(Image.open(tmp_path / "found/0.overlay.png"))
    assert overlay.mean() > 40  # of the image as it was seen
    # Results of another range are not mixed with these.
    message = refusal(weights, tmp_path / "in", tmp_path / "found", "--value-range", 0, 5000)
    assert "made with other settings (value-range)" in message


def test_options_of_values(command_line, weights, tmp_path):
    photographs(tmp_path, 1)
    start = ["infer.py", tmp_path / "in", "--weights", weights, "--output", tmp_path / "out"]
    for words, told in (
        (["--value-range", "5", "5"], "--value-range: the first number must be below the second"),
        (["--value-range", "0", "x"], "'x' must be a number"),
        (["--value-range", "0"], "expected 2 arguments"),
        (["--bands", "1", "2", "0"], "--bands is [1, 2, 0]: the numbers must lie in 1..10000"),
    ):
        code, _, errors = command_line(*start, *words)
        assert code == 2 and told in errors and "Traceback" not in errors
    code, _, errors = command_line(*start, "--bands", "1", "2", "4")
    assert code == 1 and "0.png has 3 bands, and no number 4 as data.bands or --bands" in errors


def test_twelve_bands_in_a_folder(command_line, weights, tmp_path):
    pytest.importorskip("tifffile")
    eight = photographs(tmp_path, 2)
    bands = np.zeros((40, 40, 12), np.uint16)
    for number, pixels in enumerate(eight):
        bands[..., [7, 3, 1]] = pixels.astype(np.uint16) * 10
        (tmp_path / f"in/{number}.tif").write_bytes(tiff(bands, rows=16))
        (tmp_path / f"in/{number}.png").unlink()
    start = ["--weights", weights, "--device", "cpu", "--output"]
    command_line("infer.py", tmp_path / "eight", *start, tmp_path / "expected")
    code, _, errors = command_line("infer.py", tmp_path / "in", *start, tmp_path / "none")
    lines = errors.splitlines()
    assert code == 1 and len(lines) == 2, errors
    assert all("has 12 bands and does not say which" in line for line in lines)
    code, _, errors = command_line("infer.py", tmp_path / "in", *start, tmp_path / "found",
                                   "--bands", 8, 4, 2, "--value-range", 0, 2550)
    assert (code, errors) == (0, "")
    assert all(map(np.array_equal, masks(tmp_path / "expected", 2), masks(tmp_path / "found", 2)))


def labelled(folder):
    """A data set of deep images: its section."""
    photographs(folder)
    rows = [f"{k},{'cat' if k % 2 else 'dog'}" for k in range(6)]
    (folder / "labels.csv").write_text("\n".join(["image,labels", *rows]) + "\n")
    return {"name": "folder", "root": str(folder), "images": "in", "labels": "labels.csv",
            "workers": 0}


def test_a_training_finds_its_range_and_keeps_it(tmp_path, monkeypatch, capfd, command_line):
    data = labelled(tmp_path / "own") | {"value_range": "auto", "bands": [3, 2, 1]}
    configs = [configure(tmp_path / name, data=data, train={"iterations": 6})
               for name in ("whole", "stopped")]
    assert train.main([configs[0]]) == 0
    monkeypatch.chdir(tmp_path)
    values = np.concatenate([read_raw(tmp_path / f"own/in/{k}.png") for k in range(6)], axis=None)
    range_ = tuple(np.percentile(values, (0.5, 99.5), method="nearest").astype(float))
    errors = capfd.readouterr().err
    assert f"{range_[0]:.6g} becomes black and {range_[1]:.6g} white" in errors
    assert "misread" not in errors

    run = tmp_path / "whole/runs/tiny"
    kept = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert (kept["value_range"], kept["bands"]) == (list(range_), [3, 2, 1])
    network = cosa.load(run / "best.pth")
    reading = Reading.of(network.config.data)
    assert reading == Reading(range_, (3, 2, 1))
    seen = network_input(read_image(tmp_path / "own/in/0.png", reading), 48)
    eight = network_input(read_image(tmp_path / "own/eight/0.png"), 48)
    assert torch.allclose(seen, eight.flip(0), atol=0.1) and seen.mean() > 0.2

    # infer.py does the same, from the weights alone.
    used = []
    real = pipeline.open_image
    monkeypatch.setattr(pipeline, "open_image", lambda path, reading: (
        used.append(reading), real(path, reading))[1])
    code, _, errors = command_line("infer.py", tmp_path / "own/in", "--weights", run / "best.pth",
                                   "--output", tmp_path / "masks", "--device", "cpu")
    assert (code, set(used)) == (0, {reading}) and "warning" not in errors
    marks = json.loads((tmp_path / "masks/.cosa.json").read_text())["mask"]
    assert (marks["value-range"], marks["bands"]) == (list(range_), [3, 2, 1])

    # A run that is resumed takes the numbers from its configuration.
    stop_after(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train.main([configs[1]]) == 130
    monkeypatch.undo()
    found = yaml.safe_load((tmp_path / "stopped/runs/tiny/config.yaml").read_text())["data"]
    assert found["value_range"] == list(range_)
    assert train.main(["--resume", str(tmp_path / "stopped/runs/tiny")]) == 0
    assert_equal_runs(*(train.RunFolder(tmp_path / name / "runs/tiny")
                        for name in ("whole", "stopped")))


def read_raw(path):
    """Values of a file of ``photographs``, from the picture that it was made of."""
    with Image.open(path.parent.parent / "eight" / path.name) as image:
        return np.rint(np.asarray(image) * (4095 / 255)).astype(np.uint16)


def test_a_training_on_black_images_says_so_once(train_program, tmp_path):
    config = configure(tmp_path, data=labelled(tmp_path / "own"), train={"iterations": 1})
    code, _, errors = train_program(config)
    warnings = [line for line in errors.splitlines() if "6 of 6 training images seem" in line]
    assert code == 0 and len(warnings) == 1
    assert "use a small part of 0..65535" in warnings[0] and "data.value_range=auto" in warnings[0]


def test_weights_of_before_there_were_ranges(weights, tmp_path):
    content = read(weights)
    assert content["about"]["config"]["data"].pop("value_range") == ""
    content["about"]["config"]["data"].pop("bands")
    save(tmp_path / "old.pth", content)
    assert Reading.of(load(tmp_path / "old.pth").config.data) == Reading()
    # The range is kept where the rest of the section is of another version.
    content["about"]["config"]["data"] |= {"value_range": [1, 2], "of_another_version": 1}
    save(tmp_path / "new.pth", content)
    assert load(tmp_path / "new.pth").config.data.value_range == (1.0, 2.0)
    content["about"]["config"]["data"]["value_range"] = "auto"
    save(tmp_path / "auto.pth", content)
    save_smooth(tmp_path / "in/a.png")
    message = refusal(tmp_path / "auto.pth", tmp_path / "in", tmp_path / "out")
    assert message.startswith("data.value_range is auto where no training images")


def test_what_the_page_says_is_accepted(tmp_path, monkeypatch):
    text = (ROOT / "docs/pictures.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(body for kind, body in blocks if kind == "bash").replace("\\\n", " ")
    trained, inferred = [], []
    for words in map(shlex.split, lines.splitlines()):
        if words[1] == "train.py":
            trained.append(load_config(ROOT / words[2], words[3:]).data)
        elif words[1] == "infer.py":
            inferred.append(infer.parse(words[2:]))
        else:
            assert " ".join(words) == INSTALL
    assert [(data.value_range, data.bands) for data in trained] == [
        ((0.0, 4095.0), ()), ("auto", ()), ("auto", (4, 3, 2))]
    assert [(given.value_range, given.bands) for given in inferred] == [
        ((0.0, 16383.0), None), (None, (8, 4, 3))]

    (python,) = (body for kind, body in blocks if kind == "python")
    values = np.zeros((20, 30, 4), np.uint16)
    values[..., 3] = 4095
    (tmp_path / "photo.tif").write_bytes(tiff(values, 2, extra=(2,)))
    (tmp_path / "runs/custom").mkdir(parents=True)
    write_weights(tmp_path / "runs/custom/best.pth")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.py").write_text(python, encoding="utf-8")
    made = runpy.run_path("page.py")
    assert made["own"].getpixel((3, 3)) == (255, 0, 0)
    assert made["image"].getpixel((3, 3)) == (239, 239, 239)  # black of an opacity of 1/16
    assert made["seen"].shape == (3, 32, 32)
