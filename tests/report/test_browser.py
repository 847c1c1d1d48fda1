"""The pages in Chromium: nothing on its console, readable on a desk and on a telephone."""

import pytest

from cosa.report import write_comparison, write_report
from tests.helpers.reports import EVIL, assert_readable, browse, write_run

pytest.importorskip("matplotlib")


def test_the_report_of_a_run(tmp_path):
    run = write_run(tmp_path / "run", classes=EVIL, name="<b>" + "x" * 200)
    page = write_report(run.path).read_text(encoding="utf-8")
    found, console = browse(tmp_path, page)
    assert_readable(found, console)
    assert [len(one["pictures"]) for one in found] == [3 + len(EVIL)] * 2


def test_a_comparison(tmp_path):
    runs = [write_run(tmp_path / name, classes=EVIL, seed=seed, name=f"{name}<i>{'y' * 90}",
                      loss={"csc": weight})
            for name, seed, weight in (("a", 1, 0.1), ("b", 2, 0.1), ("c", 1, 0.0))]
    path = write_comparison([run.path for run in runs], tmp_path / "c.html")
    assert_readable(*browse(tmp_path, path.read_text(encoding="utf-8")))


def test_what_is_wrong_would_be_seen(tmp_path):
    page = ("<!DOCTYPE html><body><p style='width: 700px; font-size: 20px'>wide</p>"
            "<script>undefined_name()</script>")
    (desk, phone), console = browse(tmp_path, page)
    assert phone["scrolls"] > 390 and phone["wide"] == ["P."] and desk["wide"] == []
    assert any("undefined_name" in line for line in console)
