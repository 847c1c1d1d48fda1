"""infer.py --report: a page of all images with their masks, the least certain first."""

import json
import os
import re
import signal
from urllib.parse import unquote

import numpy as np
import pytest

from cosa.inference import gallery
from tests.helpers.hostile import CLASS
from tests.helpers.inference import read, refusal, run_main, save_smooth, write_weights
from tests.helpers.reports import EVIL, assert_inert, assert_readable, browse, parsed

NAMES = ["0.png", "a/1.png", "a/2.jpg", "a/3.png"]


def links(page):
    return [value for tag, key, value in parsed(page)[1] if (tag, key) == ("a", "href")]


def test_the_page(tmp_path, photos, program):
    out = tmp_path / "out"
    code, text, err = program(photos, out, "--report", "--json", tmp_path / "s.json")
    assert (code, err) == (0, "") and text.splitlines()[1] == "to look at: report.html"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert_inert(page)
    told = parsed(page)[2]
    summary = json.loads((tmp_path / "s.json").read_text())["images"]
    expected = sorted((entry["certainty"], entry["path"]) for entry in summary)
    assert re.findall(r"\d\.\d\d(?=\s)", told) == [f"{value:.2f}" for value, _ in expected]
    assert [told.index(f" {name} ") for _, name in expected] == sorted(
        told.index(f" {name} ") for name in NAMES)
    # Two pictures an image; both lead to files, as the name does.
    assert page.count("data:image/webp") == 2 * len(NAMES)
    assert len(links(page)) == 3 * len(NAMES)
    for address in links(page):
        assert (out / unquote(address)).is_file(), address
    # The shares are those of the mask.
    mask = read(out / "0.png")
    label = int(np.bincount(mask.ravel(), minlength=4)[1:].argmax()) + 1
    name, share = ("cat", "dog, big", "ship")[label - 1], (mask == label).mean()
    place = told.index(" 0.png ")
    assert re.search(rf"{name}\s+{100 * share:.1f} %", told[place : place + 300])


def test_overlays_and_a_folder_elsewhere(tmp_path, photos, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_main(weights, "in", "some where/out", "--report", "--overlay", "--review", 2) == 0
    page = (tmp_path / "some where/out/report.html").read_text(encoding="utf-8")
    assert "../../in/a/2.jpg" in links(page) and "a/2.overlay.png" in links(page)
    # It is made anew, and without computing anything again.
    before = (tmp_path / "some where/out/report.html").read_bytes()
    assert run_main(weights, "in", "some where/out", "--report", "--overlay") == 0
    assert (tmp_path / "some where/out/report.html").read_bytes() == before


def test_of_many_images_the_last_are_lines(tmp_path, photos, program, monkeypatch):
    monkeypatch.setattr(gallery, "MOST", 1)
    assert program(photos, tmp_path / "out", "--report")[0] == 0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 2 and len(links(page)) == 3 + 2 * 3
    assert "pictures of the first 1, then a line for each" in parsed(page)[2]


def test_images_that_fail_are_on_the_page(tmp_path, photos, program):
    out = tmp_path / "out"
    (photos / "b.png").write_bytes(b"no image")
    assert program(photos, out, "--report", "--review", 1)[0] == 1
    told = parsed((out / "report.html").read_text(encoding="utf-8"))[2]
    assert f"Failed b.png :  {photos}/b.png" in re.sub(" +", " ", told).replace(": ", ":  ")
    (photos / "b.png").unlink()
    # A certainty that is damaged, met by both pages, is one failure.
    (out / "0.certainty.npz").write_bytes((out / "0.png").read_bytes())
    code, text, err = program(photos, out, "--report", "--review", 1)
    assert code == 1 and "1 failed" in text and err.count("failed: ") == 1
    # An image that is gone when it is to be shown.
    assert program(photos, out, "--report", "--overwrite")[0] == 0
    (photos / "a/1.png").write_bytes(b"")
    code, text, err = program(photos, out, "--report")
    assert code == 1 and "1 failed" in text
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/webp") == 2 * 3


def test_stopped_it_leaves_what_was_there(tmp_path, photos, program, monkeypatch):
    out = tmp_path / "out"
    assert program(photos, out, "--report")[0] == 0
    (out / "report.html").write_text((out / "report.html").read_text() + "<!-- before -->")
    real = gallery.read_pair

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(gallery, "read_pair", interrupted)
    code, _, err = program(photos, out, "--report")
    assert code == 130 and "the same command goes on where it left off" in err
    assert (out / "report.html").read_text().endswith("<!-- before -->")


def test_what_would_be_lost_is_refused(tmp_path, photos, weights):
    out = tmp_path / "out"
    assert run_main(weights, photos, out, "--report") == 0
    told = refusal(weights, photos, out, "--report", "--json", out / "report.html")
    assert "--json" in told
    told = refusal(weights, photos, out, "--report", "--labels", out / "report.html")
    assert "--labels" in told and "overwritten by --report" in told
    (out / "report.html").write_text("<html>My thesis</html>")
    assert "was not written by --report" in refusal(weights, photos, out, "--report")
    (out / "report.html").unlink()
    (out / "report.html").mkdir()
    assert "a folder" in refusal(weights, photos, out, "--report")


@pytest.mark.skipif(os.name != "posix", reason="needs names of any characters")
def test_hostile_names_and_a_browser(tmp_path, capfd):
    classes = (EVIL[0], CLASS, EVIL[2])
    weights = write_weights(tmp_path / "w.pt", classes=classes)
    for number, name in enumerate((EVIL[1], "a'b\"c#?%.x", "javascript:alert(1)", "n\n<b>",
                                   "x" * 120, "日本")):
        save_smooth(tmp_path / "in" / f"{name.replace('/', '_')}.png", (300, 200), seed=number)
    out = tmp_path / "out"
    assert run_main(weights, tmp_path / "in", out, "--report") == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert_inert(page)
    for address in links(page):
        assert (out / unquote(address)).is_file(), address
    assert_readable(*browse(tmp_path, page))
