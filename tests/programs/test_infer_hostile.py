"""infer.py where everything goes wrong: one sentence each, nothing half-written."""


import errno
import json
import os
import signal
import stat
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from cosa import checkpoint
from cosa.core.errors import UserError
from cosa.data.images import read_image
from cosa.inference import outputs, pipeline, segmenter, task
from cosa.inference.jobs import CannotGoOn
from cosa.inference.settings import CrfSettings
from infer import main
from tests.helpers.inference import (
    ALL,
    PLAIN,
    files,
    refusal,
    run_main,
    save,
    save_smooth,
    write_weights,
)
from tests.helpers.limits import largest_file


def test_weights_of_the_wrong_kind(tmp_path, weights):
    path = save(tmp_path / "in/a.png")
    wrong = {
        "text.pth": lambda file: file.write_text("hello"),
        "empty.pth": lambda file: file.write_bytes(b""),
        "image.png": lambda file: save(file),
        "cut.pth": lambda file: file.write_bytes(weights.read_bytes()[:5000]),
        "tensor.pth": lambda file: torch.save(torch.zeros(3), file),
        "optimizer.pth": lambda file: torch.save({"state": {}, "param_groups": []}, file),
        "code.pth": lambda file: torch.save({"model": Exploit()}, file),
        "folder.pth": lambda file: file.mkdir(),
        "text.safetensors": lambda file: file.write_text("hello"),
    }
    for name, make in wrong.items():
        make(tmp_path / name)
        assert name in refusal(tmp_path / name, path, tmp_path / "out"), name
    assert not (tmp_path / "out").exists() and not (tmp_path / "exploited").exists()


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


def test_class_counts_that_do_not_fit(tmp_path, weights):
    path = save(tmp_path / "in/a.png")
    content = torch.load(weights, weights_only=True)
    content["about"]["classes"] = ["cat", "dog"]
    torch.save(content, tmp_path / "fewer.pt")
    message = refusal(tmp_path / "fewer.pt", path, tmp_path / "out")
    assert "fewer.pt does not fit its own configuration" in message
    many = [f"class {k}" for k in range(256)]
    write_weights(tmp_path / "many.pt", classes=many)
    message = refusal(tmp_path / "many.pt", path, tmp_path / "out")
    assert "many.pt has 256 classes: masks hold at most 255" in message
    # With 255 classes masks can be written, but not told from ignored pixels.
    write_weights(tmp_path / "full.pt", classes=many[:-1])
    save(tmp_path / "truth/a.png", mode="L")
    message = refusal(
        tmp_path / "full.pt", path, tmp_path / "out", "--evaluate", tmp_path / "truth"
    )
    assert "255 classes" in message and "at most 254" in message
    assert not (tmp_path / "out").exists()
    assert run_main(tmp_path / "full.pt", path, tmp_path / "out") == 0


def test_folders_without_images_and_inputs_of_one_name(tmp_path, weights):
    (tmp_path / "in").mkdir()
    message = refusal(weights, tmp_path / "in", tmp_path / "out", *ALL)
    assert "there is no image in" in message
    save(tmp_path / "in/a.jpg")
    # The pseudo-labels of the one are the mask of the other.
    save(tmp_path / "in/a.cpl.jpg")
    assert run_main(weights, tmp_path / "in", tmp_path / "fine") == 0
    message = refusal(weights, tmp_path / "in", tmp_path / "out", *ALL)
    assert "a.cpl.jpg" in message and "would both become" in message
    assert not (tmp_path / "out").exists()


def test_output_that_is_no_folder(tmp_path, weights):
    path = save(tmp_path / "in/a.png")
    (tmp_path / "file").write_text("kept")
    for output in (tmp_path / "file", tmp_path / "file/deeper"):
        message = refusal(weights, path, output)
        assert f"--output {output}" in message and "cannot write" in message
    assert (tmp_path / "file").read_text() == "kept" and files(tmp_path) == ["file", "in/a.png"]


@contextmanager
def unwritable(folder, number):
    """Everything below a folder refuses to be made or changed, whoever asks, root included."""
    folder = os.path.realpath(folder)

    def refusing(call, changes=lambda *_: True):
        def run(path, *arguments, **keywords):
            inside = isinstance(path, str | os.PathLike) and os.path.realpath(path).startswith(
                folder
            )
            if inside and changes(*arguments):
                raise OSError(number, os.strerror(number), str(path))
            return call(path, *arguments, **keywords)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "unlink", "replace", "rename"):
            patch.setattr(os, name, refusing(getattr(os, name)))
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        patch.setattr(os, "open", refusing(os.open, lambda flags, *_: flags & writing))
        yield


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_read_only_output(tmp_path, weights, program, number):
    path, reason = save(tmp_path / "in/a.png"), os.strerror(number)
    done, empty, json_file = tmp_path / "done", tmp_path / "empty", tmp_path / "empty/s.json"
    assert program(path, done)[0] == 0
    empty.mkdir()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with unwritable(empty, number):
        message = refusal(weights, path, empty)
        assert message.startswith(f"cannot write {empty}") and reason in message
        assert reason in refusal(weights, path, empty / "new")
        message = refusal(weights, path, tmp_path / "other", "--json", json_file)
        assert message.startswith(f"cannot write {json_file}: {reason} (")
    with unwritable(done, number):
        assert reason in refusal(weights, path, done, "--overwrite")
        assert reason in refusal(weights, path, done, "--save", "cam")
        # Where all is done, nothing needs to be written.
        assert program(path, done)[0] == 0
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_subfolder_that_cannot_be_written(tmp_path, weights, program, number):
    a, _ = save(tmp_path / "in/a.png"), save(tmp_path / "in/sub/b.png")
    out = tmp_path / "out"
    with unwritable(out / "sub", number):
        if number == errno.EACCES:  # the one image alone fails
            code, text, err = program(tmp_path / "in", out, *ALL)
            assert code == 1 and "1 done" in text and "1 failed" in text
            assert f"in/sub/b.png cannot be written: {os.strerror(number)}" in err
        else:
            assert "make room" in refusal(weights, tmp_path / "in", out, *ALL)
    assert files(out) == sorted(["a" + kind.suffix for kind in PLAIN.values()] + ["classes.csv"])
    assert "1 skipped" in program(a.parent, out, *ALL)[1]
    assert files(out / "sub") == sorted("b" + kind.suffix for kind in PLAIN.values())


@pytest.mark.skipif(os.name != "posix", reason="needs file systems with names of 255 bytes")
def test_names_that_cannot_be_are_that_images_failure(tmp_path, program):
    for name in ("a", "b", "n" * 250):
        save(tmp_path / f"in/{name}.jpg")
    out = tmp_path / "out"
    assert program(tmp_path / "in/a.jpg", out, "--overlay")[0] == 0
    (out / "b.overlay.png").mkdir()
    for _ in range(2):
        code, text, err = program(tmp_path / "in", out, "--overlay")
        assert code == 1 and "1 skipped" in text and "2 failed" in text
        assert f"failed: cannot write {out / 'b.overlay.png'}: it is a folder" in err
        assert "n.jpg cannot be written: File name too long" in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_devices_and_pipes_are_not_replaced(tmp_path, weights, program):
    for name in "ab":
        save(tmp_path / f"in/{name}.png")
    out = tmp_path / "out"
    assert program(tmp_path / "in", out, "--save", "cam")[0] == 0
    os.mkfifo(tmp_path / "pipe")
    message = refusal(weights, tmp_path / "in", out, "--json", tmp_path / "pipe")
    assert message == (
        f"cannot write {tmp_path / 'pipe'}: it is a device, pipe or socket; choose another name"
    )
    assert "is a device" in refusal(weights, tmp_path / "in", out, "--json", os.devnull)
    os.mkfifo(out / "a.png")
    assert "unknown origin" in refusal(weights, tmp_path / "in", out)
    code, text, err = program(tmp_path / "in", out, "--overwrite")
    assert code == 1 and "1 done" in text and f"{out / 'a.png'}: it is a device" in err
    for path in (tmp_path / "pipe", out / "a.png"):
        assert stat.S_ISFIFO(path.stat().st_mode)


def test_the_summary_replaces_nothing_but_a_summary(tmp_path, weights, program):
    path = save(tmp_path / "in/a.png")
    notes = {"notes.txt": "mine", "annotations.json": '{"images": [{"id": 1}]}', "in/b.txt": "{}"}
    for name, text in notes.items():
        (tmp_path / name).write_text(text)
        message = refusal(weights, path, tmp_path / "out", "--json", tmp_path / name)
        assert message.startswith(f"--json {tmp_path / name} is there and no summary")
        assert (tmp_path / name).read_text() == text
    save(tmp_path / "in/c.png")
    (tmp_path / "truth").mkdir()
    Image.new("L", Image.open(path).size, 1).save(tmp_path / "truth/a.png")
    for name in ("truth/a.png", "truth/../truth/c.png"):  # there is no mask of c
        message = refusal(weights, tmp_path / "in", tmp_path / "out", "--evaluate",
                          tmp_path / "truth", "--json", tmp_path / name)
        assert "is the name of another file" in message
    # A folder of the results, above one or their file, though none of them is there yet.
    save(tmp_path / "in/deep/er/a.png")
    for name in ("", "/deep", "/deep/er", "/c.png/s.json", "/deep/er/a.png/s.json",
                 "/classes.csv/s.json"):
        message = refusal(weights, tmp_path / "in", tmp_path / "out", "--json",
                          f"{tmp_path / 'out'}{name}")
        assert "is the name of another file or folder of this run" in message
    message = refusal(weights, path, tmp_path / "out/a/b", "--json", tmp_path / "out/a")
    assert "is the name of another file or folder of this run" in message
    assert not (tmp_path / "out").exists()
    (tmp_path / "s.json").write_text("")
    for _ in range(2):
        assert program(path, tmp_path / "out", "--json", tmp_path / "s.json")[0] == 0
        assert json.loads((tmp_path / "s.json").read_text())["run"]["failed"] == 0


NO_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't "
                 "allocate memory: you tried to allocate 9 bytes.\nError code 12"),
]


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("place", ["open_image", "network_input", "pseudo_labels_at_size",
                                   "dense_crf", "save_mask", "overlay"])
def test_an_image_too_large_for_the_memory_fails_alone(tmp_path, program, monkeypatch, place,
                                                       error):
    for k in range(3):
        save(tmp_path / f"in/{k}.png", (20 + k, 12))
    module = next(m for m in (pipeline, segmenter, outputs) if hasattr(m, place))
    real = getattr(module, place)

    def of_the_large_one(argument):
        if isinstance(argument, tuple):
            return argument == (12, 21)
        return (str(argument).endswith("1.png") or getattr(argument, "width", 0) == 21
                or getattr(argument, "shape", ())[:2] == (12, 21))

    def failing(*arguments, **keywords):
        if any(map(of_the_large_one, arguments)):
            raise error
        return real(*arguments, **keywords)

    options = ("--save", "mask,overlay,cpl", "--crf", "--json", tmp_path / "s.json")
    with monkeypatch.context() as patch:
        if place == "dense_crf":  # of which four pixels are tried at the start
            patch.setattr(task, "choose_crf", lambda _: CrfSettings(1, (1, 1), (4, 9, 5)))
        patch.setattr(module, place, failing)
        code, text, err = program(tmp_path / "in", tmp_path / "out", *options)
    assert code == 1 and "2 done" in text and "1 failed" in text
    assert err == (f"failed: out of memory at {tmp_path / 'in/1.png'}: lower --workers, "
                   "--size or --max-size, or shrink the image\n")
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_image_beyond_the_memory_for_images_is_not_even_decoded(tmp_path, program, monkeypatch):
    for k in range(3):
        save(tmp_path / f"in/{k}.png", (20, 12))
    save(tmp_path / "in/large.png", (400, 300))
    monkeypatch.setattr(pipeline, "memory_size", lambda: 2 * 8 * 400 * 300 - 1)
    code, text, err = program(tmp_path / "in", tmp_path / "out", "--overlay")
    assert code == 1 and "3 done" in text and "1 failed" in text
    assert err == (f"failed: {tmp_path / 'in/large.png'} is 400x300 pixels, too many for this "
                   "machine's memory; segment it by windows, --mode slide, or shrink it, or cut it "
                   "into parts\n")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices of POSIX")
def test_pipes_and_devices_fail_alone(tmp_path, program):
    save(tmp_path / "in/a.png", (20, 12))
    save(tmp_path / "in/b.png", (20, 12))
    (tmp_path / "in/zero.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "in/pipe.png")
    (tmp_path / "truth").mkdir()
    os.mkfifo(tmp_path / "truth/a.png")
    Image.new("L", (20, 12), 1).save(tmp_path / "truth/b.png")
    code, text, err = program(tmp_path / "in", tmp_path / "out", "--evaluate", tmp_path / "truth")
    assert code == 1 and "2 done" in text and "1 images scored" in text
    assert f"{tmp_path / 'truth/a.png'} cannot be read as an image: it is a device, pipe" in err


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_lines_of_pixels_are_segmented_and_scored(tmp_path, program, mode):
    sizes = [(3000, 1), (1, 3000), (1, 1), (2, 5000)]
    for k, size in enumerate(sizes):
        save(tmp_path / f"in/{k}.png", size)
        (tmp_path / "truth").mkdir(exist_ok=True)
        Image.new("L", size, 1).save(tmp_path / f"truth/{k}.png")
    code, text, err = program(tmp_path / "in", tmp_path / "out", "--mode", mode, "--overlay",
                              "--evaluate", tmp_path / "truth")
    assert (code, err) == (0, "") and "4 images scored" in text
    for k, size in enumerate(sizes):
        assert Image.open(tmp_path / f"out/{k}.png").size == size


@pytest.mark.parametrize("error", NO_MEMORY)
def test_a_network_too_large_for_the_memory(tmp_path, weights, monkeypatch, error):
    path = save(tmp_path / "a.png")

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(segmenter, "multi_scale", fail)
        message = refusal(weights, path, tmp_path / "out")
        assert message == "out of memory on cpu: lower --batch-size or --size"
    monkeypatch.setattr(checkpoint, "load", fail)
    assert f"{weights} takes more memory than cpu has free" in refusal(weights, path, "out")


def test_decoding_without_memory_is_told(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    path = save(tmp_path / "a.png", mode="L")
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(UserError, match="a.png is too large for the free memory.*fewer workers"):
        read_image(path)


def test_weights_that_are_not_finite(tmp_path, weights):
    path = save(tmp_path / "in/a.png")
    for value in (float("nan"), float("-inf")):
        content = torch.load(weights, weights_only=True)
        content["assignment"]["decoder.conv8.weight"][1, 0, 0, 0] = value
        torch.save(content, tmp_path / "diverged.pt")
        message = refusal(tmp_path / "diverged.pt", path, tmp_path / "out")
        assert message == (
            f"{tmp_path / 'diverged.pt'} holds values in decoder.conv8.weight that are not finite, "
            "its training has diverged: give another checkpoint"
        )
    assert not (tmp_path / "out").exists()


def test_probabilities_that_are_not_finite_are_null(tmp_path, weights, program):
    content = torch.load(weights, weights_only=True)
    last = content["assignment"]["decoder.conv8.weight"]
    last.sign_().mul_(torch.finfo(last.dtype).max)  # finite, but what comes of it is not
    torch.save(content, tmp_path / "huge.pt")
    save(tmp_path / "in/a.png")
    options = ("--json", tmp_path / "s.json")
    assert run_main(tmp_path / "huge.pt", tmp_path / "in", tmp_path / "out", *options) == 0

    def no_constant(name):
        raise AssertionError(f"{name} is no JSON")

    text = (tmp_path / "s.json").read_text()
    (entry,) = json.loads(text, parse_constant=no_constant)["images"]
    assert None in {found["probability"] for found in entry["classes"]}


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that refuses all")
def test_output_that_refuses_files(tmp_path, weights):
    message = refusal(weights, save(tmp_path / "a.png"), "/proc/self/masks")
    assert message.startswith("cannot write /proc/self/masks/")


def test_finished_output_is_not_written_to(tmp_path, program, weights):
    path = save(tmp_path / "in/a.png")
    assert program(path, tmp_path / "out", *ALL)[0] == 0
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert "1 skipped" in program(path, tmp_path / "out", *ALL)[1]
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}


@pytest.mark.parametrize("kind", ["mask", "overlay", "cam", "cpl", "probabilities"])
def test_files_that_do_not_fit_leave_nothing_behind(tmp_path, program, kind):
    for k in range(3):
        save(tmp_path / f"in/{k}.png", (300, 300) if k == 1 else (2, 2), seed=k)
    source, out = tmp_path / "in", tmp_path / "out"
    options = ("--mode", "slide", "--scales", "1", "--save", kind)
    with largest_file(1500):
        code, text, err = program(source, out, *options)
    assert code == 1 and "2 done" in text and "1 failed" in text
    assert err == f"failed: the result of {source / '1.png'} cannot be written: File too large\n"
    written = (name + PLAIN[kind].suffix for name in "02")
    assert files(out) == sorted([*written, "classes.csv"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_stops_the_program_once_and_for_all(tmp_path, weights, monkeypatch, capfd,
                                                        number):
    for k in range(20):
        save(tmp_path / f"in/{k:02}.png")
    real = outputs.save_mask

    def full(path, *arguments):
        if path.name >= "05.png":
            raise OSError(number, os.strerror(number))
        real(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "save_mask", full)
        summary = ("--json", tmp_path / "s.json")
        message = refusal(weights, tmp_path / "in", tmp_path / "out", *summary)
    assert os.strerror(number) in message and "05.png" in message
    out, err = capfd.readouterr()
    assert "5 done" in out and err == ""
    assert files(tmp_path / "out") == [*(f"{k:02}.png" for k in range(5)), "classes.csv"]
    assert not (tmp_path / "s.json").exists()
    assert not list(tmp_path.glob(".*"))
    assert run_main(weights, tmp_path / "in", tmp_path / "out", *summary) == 0
    assert "15 done" in capfd.readouterr().out


def test_a_full_disk_is_no_defect_for_the_summary_either(tmp_path, weights):
    for k in range(60):
        save(tmp_path / f"in/{k}.png", (2, 2))
    with largest_file(9000):
        message = refusal(
            weights, tmp_path / "in", tmp_path / "out", "--json", tmp_path / "s.json"
        )
    assert message.startswith(f"cannot write {tmp_path / 's.json'}: ")
    assert not (tmp_path / "s.json").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.skipif(os.name != "posix", reason="sends SIGTERM")
def test_stopped_and_run_again(tmp_path, weights, program, monkeypatch):
    for k in range(40):
        save(tmp_path / f"in/{k:02}.png", (60, 40), seed=k)
    source, out = tmp_path / "in", tmp_path / "out"
    options = (*ALL, "--workers", "2", "--batch-size", "2", "--json", tmp_path / "s.json")
    assert program(source, tmp_path / "expected", *options)[0] == 0
    real = outputs.write

    def stopping(job, *arguments):
        if job.name == "11.png":
            os.kill(os.getpid(), signal.SIGTERM)
        real(job, *arguments)

    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(outputs, "write", stopping)
        code, _, err = program(source, out, *options)
    assert code == 143 and err == "stopped; the same command goes on where it left off\n"
    assert signal.getsignal(signal.SIGTERM) == handler
    names, expected = files(out), files(tmp_path / "expected")
    assert 11 * 5 < len(names) < 25 * 5
    for name in names:  # whole, and what they should be
        same_sizes = (tmp_path / "expected" / name).stat().st_size
        assert name in expected and (out / name).stat().st_size == same_sizes
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["run"]["interrupted"] and 0 < content["run"]["done"] <= 12
    assert not list(tmp_path.glob(".*"))
    code, text, _ = program(source, out, *options)
    assert code == 0 and files(out) == expected
    content = json.loads((tmp_path / "s.json").read_text())
    assert len(content["images"]) == 40 and not content["run"]["interrupted"]
    assert content["run"]["skipped"] >= 11 and content["run"]["failed"] == 0


def tiny_files(folder, count):
    folder.mkdir()
    save(folder / "0.png", (2, 2))
    content = (folder / "0.png").read_bytes()
    for k in range(1, count):
        (folder / f"{k}.png").write_bytes(content)


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_tiny_files(tmp_path, program, count):
    tiny_files(tmp_path / "in", count)
    save(tmp_path / "first.png", (2, 2))
    options = ("--json", tmp_path / "s.json", "--evaluate", tmp_path / "truth", "--size", "8",
               "--scales", "1", "--no-flip", "--batch-size", "32")
    (tmp_path / "truth").mkdir()
    for k in range(count):
        (tmp_path / f"truth/{k}.png").symlink_to(tmp_path / "mask.png")
    Image.fromarray(np.ones((2, 2), np.uint8)).save(tmp_path / "mask.png")
    tracemalloc.start()
    code, out, err = program(tmp_path / "in", tmp_path / "out", *options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (code, err) == (0, "") and f"{count} done" in out
    assert f"{count} images scored" in out
    assert peak < 8_000_000 + 1500 * count
    content = json.loads((tmp_path / "s.json").read_text())
    paths = [entry["path"] for entry in content["images"]]
    assert paths == sorted(f"{k}.png" for k in range(count))
    code, out, _ = program(tmp_path / "in", tmp_path / "out", "--scales", "1", "--no-flip",
                           "--size", "8")
    assert code == 0 and f"{count} skipped" in out


def test_names_that_are_no_unicode(tmp_path, program):
    path = save_smooth(tmp_path / "a.png")
    try:
        odd = os.fsdecode(os.fsencode(str(tmp_path / "in")) + b"/b\xff.png")
        (tmp_path / "in").mkdir()
        os.rename(path, odd)
    except OSError:
        pytest.skip("this file system knows Unicode only")
    code, out, err = program(tmp_path / "in", tmp_path / "out", "--json", tmp_path / "s.json")
    assert (code, err) == (0, "")
    (entry,) = json.loads((tmp_path / "s.json").read_text())["images"]
    assert os.fsencode(entry["path"]) == b"b\xff.png"


def test_errors_of_the_command_line_are_exit_code_2(tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["in", "--weights", "w", "--output", "o", "--save", "masks"])
    assert caught.value.code == 2
    assert issubclass(CannotGoOn, UserError)  # of which run_program makes a sentence and code 2


@pytest.mark.parametrize("option", ["", "--weights", "--output", "--labels", "--evaluate",
                                    "--json"])
def test_empty_paths_are_refused(tmp_path, capsys, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    given = {"": "in", "--weights": "w", "--output": "o", option: ""}
    with pytest.raises(SystemExit) as caught:
        main([given.pop(""), *(word for pair in given.items() for word in pair)])
    assert caught.value.code == 2
    assert "it is empty: give a path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_link_that_leads_nowhere_is_that_images_failure(tmp_path, program):
    save(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").symlink_to(tmp_path / "gone.png")
    for source in ("in", "in/*.png"):
        code, text, err = program(tmp_path / source, tmp_path / "out")
        assert code == 1 and "1 failed" in text
        assert err == f"failed: {tmp_path / 'in/b.png'} does not exist; check the path\n"
