"""Run folders with all that a report shows, made without a training; pages in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from cosa.config import from_dict
from cosa.training.run_folder import RunFolder
from tests.helpers.tiny import tiny_tree

CLASSES = ("cat", "sofa", "lamp")

EVIL = ("<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "$\\frac{1}{$ &amp; it's",
        "_a\nb\u202e\x1b[2J", "]]>--><!--", "javascript:alert(1)", "שלום 日本")
"""Names that would be markup, formulas, or more than one line."""


def write_run(folder, classes=CLASSES, seed=3, name="tiny", score=0.5, finished=True, **sections):
    """A run of 12 iterations with two evaluations; the ``RunFolder``."""
    run = RunFolder(folder)
    run.create(from_dict(tiny_tree(folder.parent, seed=seed, name=name, **sections)))
    count = len(classes)
    for step in range(1, 13):
        run.log({"iteration": step, "loss": 3 / step, "cls": 1 / step, "c2s": 2 / step,
                 "xi": 0.4 if step > 3 else None, "xi_aux": 0.3 if step > 3 else None,
                 "lr": 1e-3 / step, "seconds": 2.0 * step})
    names, values = ("background", *classes), np.linspace(0.9, 0.1, count + 1)
    iou = dict(zip(names, values.tolist(), strict=True))
    scores = {
        "miou": score, "miou_label_filtered": score + 0.02, "cam_miou": 0.4, "aux_cam_miou": 0.3,
        "cam_best_miou": 0.45, "cam_best_threshold": 0.3, "classification_map": 0.8,
        "classification_f1": 0.7, "iou": iou, "cam_iou": iou | {names[-1]: None}, "images": 4,
        "seconds": 1.0,
    }
    for step in (6, 12):
        run.log_evaluation(step, scores | {"training_seconds": 2.0 * step})
    run.log_start({
        "iteration": 0, "date": "2024-01-02T03:04:05+00:00", "revision": "revision 0123456789",
        "versions": {"Python": "3.12", "PyTorch": "2.6"}, "machine": "a machine, 2 cores",
        "device": "the CPU in float32", "processes": 1,
    })
    part = {
        "classes": [*classes], "masks": None,
        "labels": {"images": 14, "of_class": [5] * count, "unlabelled": 2},
        "images": {"sized": 14, "smallest": [48, 40], "median": [48, 48], "largest": [64, 48]},
    }
    masks = {"there": 4, "read": 4, "pixels": [900, *[10] * count], "masks": [4, *[2] * count],
             "ignored_pixels": 7, "ignored_masks": 1}
    run.write_data({
        "training": part, "validation": part | {"masks": masks},
        "findings": [{"severity": "warning", "sentence": f"images of {classes[0]} are rare"}],
    })
    examples = write_pictures(run, classes)
    run.write_details({
        "iteration": 12, "split": "test", "xi": [0.4, 0.3],
        "fitted": {"cam": [*range(50)], "aux_cam": [3] * 50}, "training_seconds": 24.0,
        "peak_memory_mb": 321.0, "classes": [*names],
        "palette": [[0, 0, 0], *[[200, 30, 40]] * count], "images": 4,
        "confusion": (np.full((count + 1, count + 1), 3) + 90 * np.eye(count + 1, dtype=int))
        .tolist(),
        "images_of_class": [4, *[2] * count],
        "confidences": {"edges": [0, 0.4, 1], "background": [90, 10], "foreground": [20, 80]},
        "image_scores": [0] * 18 + [1, 3], "examples": examples,
    })
    if finished:
        run.write_summary(scores | {
            "split": "test", "iterations": 12, "xi": 0.4, "xi_aux": 0.3,
            "best_validation_score": score, "evaluation_seconds": 1.0, "seconds": 24.0,
            "peak_memory_mb": 321.0,
        })
    return run


def write_pictures(run, classes):
    """Pictures of examples, one for each kind and class; what details.json says of them."""
    run.examples.mkdir(parents=True, exist_ok=True)
    kinds = [("best", 0), ("median", 0), ("worst", 0),
             *(("class", number + 1) for number in range(len(classes)))]
    examples = []
    for number, (kind, label) in enumerate(kinds):
        file = f"00000012-test-{number:02d}.png"
        Image.new("RGB", (600, 120), (20 * number, 90, 120)).save(run.examples / file)
        examples.append({"name": f"some/{classes[label - 1]}", "file": file, "score": 0.5,
                         "kind": kind, "label": label})
    return examples


def records(run, **changes):
    """Change a run's details.json."""
    content = json.loads(run.details.read_text()) | changes
    run.details.write_text(json.dumps(content))


class _Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.texts, self._within = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, key, value) for key, value in attributes]
        self._within.append(tag)

    def handle_endtag(self, tag):
        while self._within and self._within.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self._within:
            self.texts.append(data)


def parsed(page):
    """The page's (tags, attributes as (tag, key, value), text)."""
    parser = _Elements()
    parser.feed(page)
    parser.close()
    return parser.tags, parser.attributes, " ".join(parser.texts)


TAGS = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "nav", "section", "footer",
    "h1", "h2", "h3", "p", "b", "i", "a", "ul", "li", "span", "small", "div", "bdi", "br",
    "figure", "figcaption", "img", "details", "summary",
    "table", "thead", "tbody", "tr", "th", "td",
    "svg", "g", "path", "text", "defs", "clippath", "rect", "use", "image", "tspan",
}
"""Those of the pages; of SVG in small letters, as the parser of HTML gives them."""


def assert_inert(page):
    """A page loads nothing, runs nothing, and has no elements but its own."""
    tags, attributes, _ = parsed(page)
    assert set(tags) <= TAGS, set(tags) - TAGS
    for tag, key, value in attributes:
        assert not key.startswith("on"), (tag, key)
        if key in ("src", "href", "xlink:href"):
            assert value.startswith(("data:image/", "#")) or (
                tag == "a" and re.fullmatch(r"[\w./%~-]+", value)), (tag, key, value[:80])
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("meta", "content", policy) in attributes


_HARNESS = """<!DOCTYPE html><meta charset="utf-8"><title>-</title>
<body style="margin:0">%s<script>
function measured(frame) {
  const page = frame.contentDocument, width = frame.clientWidth, wide = [], small = [];
  for (const one of page.querySelectorAll("body *")) {
    const box = one.getBoundingClientRect();
    if (one.closest(".scroll") || one.closest("svg")) continue;
    if (box.right > width + 0.5 && box.width) wide.push(one.tagName + "." + one.className);
  }
  for (const one of page.querySelectorAll("svg text")) {
    const box = one.getBoundingClientRect();
    if (box.height && Math.min(box.width, box.height) < 6 && one.textContent.length > 1)
      small.push(one.textContent);
  }
  const letters = [...page.querySelectorAll("p, td, li, h3, small, figcaption")]
    .map(one => parseFloat(frame.contentWindow.getComputedStyle(one).fontSize));
  return {width, scrolls: page.documentElement.scrollWidth, wide, small,
          smallest: Math.min(...letters), pictures: [...page.images].map(i => i.naturalWidth),
          height: page.documentElement.scrollHeight};
}
addEventListener("load", () => {
  const all = [...document.querySelectorAll("iframe")].map(measured);
  const found = document.createElement("pre");
  found.id = "found";
  found.textContent = JSON.stringify(all);
  document.body.append(found);
});
</script>"""


def browse(folder, page, widths=(1280, 390)):
    """What Chromium says of a page at some widths, and its console; skips where there is none.

    Returns:
        For each width a dictionary (see the harness above); and the lines of the console.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("Chromium is not installed")
    frames = "".join(
        f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page)}">'
        "</iframe>" for width in widths
    )
    path = folder / "harness.html"
    path.write_text(_HARNESS % frames, encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={folder / 'browser'}", "--window-size=1800,1000",
         "--virtual-time-budget=8000", "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )
    told = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert told and told[1], done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(told[1])), console


def assert_readable(found, console):
    """No message on the console, nothing sticks out of the page, no letter is tiny."""
    assert console == []
    for one in found:
        assert one["scrolls"] <= one["width"], one
        assert one["wide"] == [] and one["small"] == [], one
        assert one["smallest"] >= 12 and one["height"] > 900
        assert all(width > 0 for width in one["pictures"])
