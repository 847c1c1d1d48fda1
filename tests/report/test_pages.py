"""What the pages say of a run, and of several."""

import json
import re

import numpy as np
import pytest

from cosa.core.errors import UserError
from cosa.report import keep_up, write_comparison, write_report, writing
from cosa.report.__main__ import main
from cosa.report.comparison import spread
from cosa.report.reading import read_run
from tests.helpers.reports import CLASSES, EVIL, assert_inert, parsed, records, write_run

pytest.importorskip("matplotlib")


@pytest.fixture
def undrawn(monkeypatch):
    """Charts are empty: for pages that are looked at for other things."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write(
        b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'))


def told(page):
    return parsed(page)[2]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = write_run(tmp_path_factory.mktemp("runs") / "tiny")
    return write_report(run.path).read_text(encoding="utf-8")


def test_the_score_comes_first_with_what_it_means(page):
    text = told(page)
    assert "Scores of the final network on 4 generated test images, on which no choice was" in text
    assert re.search(r"50\.0 %\s+Label-free mIoU\s+mean over .* nothing but the image", text)
    assert re.search(r"52\.0 %\s+Label-filtered mIoU\s+mIoU after all classes are", text)
    assert text.index("50.0 %") < text.index("52.0 %") < text.index("Loss")


def test_all_parts_are_there(page):
    text = told(page)
    for words in (
        "Loss", "Terms of the loss", "Thresholds", "Learning rate", "Scores over iterations",
        "Scores over time", "IoU of each class", "Confusion matrix", "Confidences in training",
        "ξ = 0.40", "ξ† = 0.30", "best", "median", "worst", "images of cat are rare",
        "data.scenes_train", "All options", "revision 0123456789", "PyTorch 2.6",
        "the CPU in float32", "2.0 images a second", "321 MiB", "Trained to the end",
    ):
        assert words in text, words
    assert "Not recorded" not in text
    assert_inert(page)
    # What differs from the defaults comes first, with the default beside it.
    assert re.search(r"train\.iterations\s+12\s+32000", text)
    assert text.index("32000") < text.index("All options")


def test_numbers_of_classes(page):
    text = told(page)
    assert re.search(r"cat\s+2\s+63\.3 %\s+63\.3 %", text)
    assert re.search(r"lamp\s+2\s+10\.0 %\s+–", text)
    assert re.search(r"background\s+4\s+90\.0 %", text)
    assert "cat (2)" in text and "background (4)" in text  # at the bars
    # The commonest mistakes: of 93 + 3 * 3 pixels of a class, 3 are taken for another one.
    assert re.search(r"background\s+→\s+cat\s+2\.9 %", text)


def test_pictures_are_in_the_page(page):
    _, attributes, _ = parsed(page)
    sources = [value for tag, key, value in attributes if (tag, key) == ("img", "src")]
    assert len(sources) == 3 + len(CLASSES)
    assert all(source.startswith("data:image/webp") for source in sources)
    assert len(page) < 400_000


def test_hostile_names_are_text(tmp_path):
    run = write_run(tmp_path / "<b>'\"&", classes=EVIL, name="<script>x</script>")
    with run.metrics.open("a") as file:
        file.write(json.dumps({"iteration": 13, "</text><script>": 1.5, "$\\x$": 2.0}) + "\n")
    page = write_report(run.path).read_text(encoding="utf-8")
    assert_inert(page)
    text = told(page)
    assert "<script>alert(1)</script>" in text and "$\\frac{1}{$ &amp; it's" in text
    assert "_a\\nb\\u202e\\x1b[2J" in text and "</text><script>" in text
    comparison = write_comparison([run.path, run.path], tmp_path / "c.html")
    assert_inert(comparison.read_text(encoding="utf-8"))


def test_a_run_that_goes_on(tmp_path, undrawn):
    run = write_run(tmp_path / "tiny", finished=False, train={"iterations": 3000})
    text = told(write_report(run.path).read_text(encoding="utf-8"))
    assert "12 of 3 000 iterations so far" in text
    assert "Scores at iteration 12 on 4 validation images, which best.pth is chosen on" in text
    assert "Confusion matrix" not in text, "it is of the test images, the scores are not"
    assert re.search(r"cat\s+5\s+63\.3 %", text), "the labels of the validation images are counted"


def test_scores_on_the_training_images_say_so(tmp_path, undrawn):
    run = write_run(tmp_path / "tiny", finished=False, data={"name": "folder"})
    text = told(write_report(run.path).read_text(encoding="utf-8"))
    assert "4 of the training images themselves (data.val_images is empty)" in text


def test_without_masks(tmp_path, undrawn):
    run = write_run(tmp_path / "tiny", finished=False)
    line = {"iteration": 12, "classification_map": 0.6, "classification_f1": 0.5, "images": 4,
            "seconds": 1.0}
    run.evaluations.write_text(json.dumps(line) + "\n")
    records(run, confusion=[], images_of_class=[], confidences=None)
    content = json.loads(run.details.read_text())
    del content["confidences"], content["confusion"], content["images_of_class"]
    content["examples"] = [one for one in content["examples"] if one["kind"] == "class"]
    run.details.write_text(json.dumps(content))
    text = told(write_report(run.path).read_text(encoding="utf-8"))
    assert re.search(r"60\.0 %\s+Classification mAP", text)
    assert "nothing is known of the segmentation" in text and "IoU of each class" not in text
    assert text.count("There are no masks, and without them it is not known.") == 2
    assert "One of each class, the middle one" in text and "the best, the median" not in text
    assert "classification mAP on the images scored" in text, "a single line has no legend"
    other = write_run(tmp_path / "other", train={"iterations": 24})
    both = write_comparison([run.path, other.path], tmp_path / "c.html")
    assert "1 more row of the table not drawn" in told(both.read_text(encoding="utf-8"))


def test_a_run_of_before_has_a_report_of_what_it_has(tmp_path, undrawn):
    run = write_run(tmp_path / "tiny")
    for path in (run.details, run.starts, run.data):
        path.unlink()
    run.panels.mkdir()
    for path in run.examples.glob("*-00.png"):
        path.rename(run.panels / "some_image.png")
    lines = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    for line in lines:
        del line["training_seconds"]
    run.evaluations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(run.path).read_text(encoding="utf-8")
    text = told(page)
    assert re.search(r"50\.0 %\s+Label-free mIoU", text) and "Scores over time" in text
    assert "some_image" in text and "evenly spread" in text
    assert "not recorded: the run is of an earlier version" in text
    assert text.count("Not recorded in this run.") == 3  # confusions, confidences, data set
    assert_inert(page)


def test_a_summary_alone_is_a_run(tmp_path, undrawn):
    run = write_run(tmp_path / "tiny")
    for path in run.path.iterdir():
        if path.is_file() and path != run.summary:
            path.unlink()
    text = told(write_report(run.path).read_text(encoding="utf-8"))
    assert "Trained to the end: 12 iterations" in text and "50.0 %" in text
    assert "The configuration cannot be read" in text


@pytest.mark.parametrize("name, content, said", [
    ("details.json", "{", "is no JSON"),
    ("details.json", '{"classes": ["background", "a"], "confusion": [[1]]}', "of one length"),
    ("details.json", '{"palette": [[0, 0, 300]]}', "palette"),
    ("evaluations.jsonl", '{"iteration": 1, "iou": {"a": "<script>"}}\n', "line 1"),
    ("metrics.jsonl", '{"iteration": 1, "loss": "high"}\n', "line 1"),
    ("config.yaml", "loss: {csc: many}\n", "loss.csc"),
    ("summary.json", "[]", "a mapping"),
])
def test_a_damaged_file_is_told_and_the_rest_shown(tmp_path, name, content, said, undrawn):
    run = write_run(tmp_path / "tiny")
    (run.path / name).write_text(content)
    page = write_report(run.path).read_text(encoding="utf-8")
    assert said in told(page) and name in told(page)
    assert_inert(page)
    assert told(page).count("Configuration") == 2


def test_a_picture_that_is_none(tmp_path, undrawn):
    run = write_run(tmp_path / "tiny")
    (run.examples / "00000012-test-00.png").write_bytes(b"no picture")
    (run.examples / "00000012-test-01.png").unlink()
    text = told(write_report(run.path).read_text(encoding="utf-8"))
    assert text.count("cannot be shown") == 2


def test_a_picture_elsewhere_is_not_shown(tmp_path, undrawn):
    run = write_run(tmp_path / "tiny")
    example = {"name": "x", "file": "../../secret.png", "score": 0.5, "kind": "best", "label": 0}
    (run.examples / "00000012-test-00.png").rename(tmp_path / "secret.png")
    records(run, examples=[example])
    _, attributes, text = parsed(write_report(run.path).read_text(encoding="utf-8"))
    assert "secret.png cannot be shown" in text
    assert not [value for tag, key, value in attributes if tag == "img"]


# Several runs


def test_a_comparison(tmp_path, undrawn):
    runs = [write_run(tmp_path / "runs" / name, name=name, seed=seed, score=score,
                      loss={"csc": weight})
            for name, seed, score, weight in (
                ("a1", 1, 0.50, 0.1), ("a2", 2, 0.56, 0.1), ("no-csc", 1, 0.40, 0.0))]
    path = write_comparison([run.path for run in runs], tmp_path / "c.html")
    text = told(path.read_text(encoding="utf-8"))
    # The spread of 50 and 56 is 6 / sqrt(2).
    assert re.search(r"a1, a2\s+2\s+1, 2\s+53\.0 ± 4\.2 %", text)
    assert re.search(r"no-csc\s+1\s+1\s+40\.0 %", text)
    assert re.search(r"loss\.csc\s+0\.1\s+0\.0", text)
    assert "train.iterations" not in text, "it is the same in all"
    for words in ("Label-free mIoU over iterations", "Label-free mIoU over time", "Loss",
                  "Label-free IoU of each class"):
        assert words in text, words


def test_runs_scored_on_other_images_are_not_compared_silently(tmp_path, undrawn):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", finished=False)]
    path = write_comparison([run.path for run in runs], tmp_path / "c.html")
    text = told(path.read_text(encoding="utf-8"))
    assert "cannot be compared as they are" in text and "Not trained to the end" in text
    for run in runs:  # of long paths the middle is left out
        assert f"{str(run.path)[-8:]})" in text, "runs of one name are told apart"


@pytest.mark.parametrize("shares, text", [
    ([], "–"), ([0.5], "50.0 %"), ([0.1, 0.3], "20.0 ± 14.1 %"),
])
def test_spread(shares, text):
    assert spread(shares) == text


# The program, and the training


def test_the_program(tmp_path, capsys, undrawn):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=4)]
    assert main([str(runs[0].path)]) == 0
    assert main([str(runs[0].path), "--output", str(tmp_path / "one.html")]) == 0
    assert main([*(str(run.path) for run in runs), "--output", str(tmp_path / "two.html")]) == 0
    out = capsys.readouterr().out.splitlines()
    files = [runs[0].path / "report.html", tmp_path / "one.html", tmp_path / "two.html"]
    assert out == [f"{path} is written" for path in files]
    assert files[0].read_text() == files[1].read_text()
    assert "2 runs compared" in files[2].read_text()


@pytest.mark.parametrize("make, said", [
    (lambda folder: folder / "missing", "is no folder"),
    (lambda folder: folder, "holds no run"),
])
def test_no_run(tmp_path, make, said):
    with pytest.raises(UserError, match=said):
        main([str(make(tmp_path))])


def test_a_failure_ends_no_training(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "tiny")

    def broken(run):
        raise ZeroDivisionError("of\nlines")

    monkeypatch.setattr(writing, "run_page", broken)
    keep_up(run.path)
    err = capsys.readouterr().err
    assert err.startswith("warning: report.html is not written (ZeroDivisionError: of lines)")
    assert err.count("\n") == 1 and not run.report.exists()
    run.config.unlink()
    run.evaluations.unlink()
    run.summary.unlink()
    keep_up(run.path)
    assert "holds no run" in capsys.readouterr().err


def test_without_the_library_one_sentence_is_said_once(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "tiny")
    for module in ("writing", "charts"):
        monkeypatch.setattr(f"cosa.report.{module}.available", lambda: False)
    keep_up(run.path)
    keep_up(run.path)
    assert capsys.readouterr().err == (
        "note: report.html is not written, which needs the package matplotlib: pip install "
        f"matplotlib, then python -m cosa.report {run.path}\n")
    with pytest.raises(UserError, match="pip install matplotlib"):
        write_report(run.path)


def test_long_lines_are_averaged(tmp_path):
    run = write_run(tmp_path / "tiny")
    with run.metrics.open("w") as file:
        for step in range(1, 5001):
            file.write(json.dumps({"iteration": step, "loss": 1.0 + step % 2, "seconds": step / 10})
                       + "\n")
    page = write_report(run.path).read_text(encoding="utf-8")
    assert len(page) < 350_000
    assert len(read_run(run.path).metrics) == 5000


def test_a_page_of_many_classes(tmp_path):
    """As many as COCO has: the file stays small."""
    names = tuple(f"class {number}" for number in range(80))
    run = write_run(tmp_path / "tiny", classes=names)
    details = json.loads(run.details.read_text())
    assert np.array(details["confusion"]).shape == (81, 81)
    page = write_report(run.path).read_text(encoding="utf-8")
    assert_inert(page)
    assert len(page) < 1_200_000
