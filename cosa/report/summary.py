"""The first lines of a report: how good the network is, and on which images."""

from __future__ import annotations

from cosa.pages.markup import Markup, element, table
from cosa.report.reading import Run
from cosa.report.words import first_score, percent
from cosa.score_names import MEANINGS, NAMES

BESIDE = {"miou": ("miou_label_filtered", "cam_miou", "classification_map"),
          "classification_map": ("classification_f1",)}
"""The score -> those on cards beside it."""


def state(run: Run) -> str:
    """A sentence about how far the training has come."""
    done = f"{run.iteration:,}".replace(",", " ")
    total = run.config.train.iterations if run.config else run.iteration
    if run.summary is not None and run.summary.get("iterations", 0) >= run.iteration:
        return f"Trained to the end: {done} iterations."
    return f"{done} of {total:,} iterations so far.".replace(",", " ")


def images_scored(run: Run) -> str:
    """A clause about the images that the scores are of."""
    scores = run.scores or {}
    count, data = scores.get("images", 0), run.config and run.config.data
    some = ""
    if run.config and 0 < run.config.evaluate.max_images <= count:
        some = " (evaluate.max_images: not all of them)"
    if scores.get("split") == "test":
        which = "generated test images" if data and data.name == "scenes" else (
            "images of the second half of the validation images")
        return f"{count} {which}{some}, on which no choice was made"
    if data and data.name == "folder" and not data.val_images:
        return (f"{count} of the training images themselves{some} (data.val_images is empty): they "
                "tell nothing about other images")
    chosen = "which best.pth is chosen on"
    return f"{count} validation images{some}, {chosen}"


def score_section(run: Run) -> Markup:
    """Cards of the main scores with their meanings, and a table of all of them."""
    scores = run.scores
    if scores is None:
        return element("p", "No evaluation has been made yet.", class_="pale")
    main = first_score(scores)
    of = "of the final network" if run.summary else (
        f"at iteration {scores.get('iteration', run.iteration)}")
    told = f"Scores {of} on {images_scored(run)}."
    if main != "miou":
        told += " There are no masks: nothing is known of the segmentation."
    cards = [_card(main, scores[main], "card main")]
    cards += [_card(key, scores[key], "card") for key in BESIDE[main] if key in scores]
    rows = [
        (NAMES[key], element("span", percent(scores[key]), class_="number"), MEANINGS[key])
        for key in NAMES if key in scores
    ]
    if "cam_best_threshold" in scores:
        best = scores["cam_best_threshold"]
        rows.append(("best threshold for these masks", f"{best:.2f}", "of the bound above"))
    everything = element(
        "details", element("summary", "All scores"),
        table(("score", "", "what it is"), rows, "words"),
    )
    return element("div", element("p", told), element("div", cards, class_="cards"), everything)


def _card(key: str, value: float | None, class_: str) -> Markup:
    label = NAMES[key][0].upper() + NAMES[key][1:]
    return element("div", element("b", percent(value)), element("span", label),
                   element("small", MEANINGS[key]), class_=class_)
