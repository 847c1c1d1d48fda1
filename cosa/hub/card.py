"""The card of a model: README.md on the hub, of what a run has and has not measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import yaml

import cosa
from cosa.config import Config
from cosa.core.hub import Model
from cosa.core.text import NAME, shown
from cosa.hub.run import Trained
from cosa.score_names import MEANINGS, NAMES

UNSTATED = "unknown"
"""The hub's word for a licence that nobody has stated."""

PAPER = "https://arxiv.org/abs/2402.17891"

_NEVER = (
    "images of another kind than those that it was scored on",
    "robustness, and whether it is wrong more often for some people, places or things than others",
    "speed and memory of inference",
)
"""What no run measures."""

_SPECIAL = re.compile(r"([!-/:-@\[-`{-~])")


def escaped(text: object, most: int = NAME) -> str:
    """A name as Markdown that shows these very characters, in a paragraph or the cell of a table.

    Every ASCII mark gets a backslash, so that none makes markup, a link, HTML, an entity or a
    formula; what cannot be seen is shown as an escape, and what is long is cut.
    """
    return _SPECIAL.sub(r"\\\1", shown(text, most))


def card(model: Model, trained: Trained, licence: str) -> str:
    """The text of README.md, its metadata in front.

    Args:
        model: where it will be.
        licence: the hub's identifier, ``UNSTATED`` if none is stated.
    """
    return "\n".join([
        "---", yaml.safe_dump(_metadata(licence), sort_keys=False).rstrip(), "---", "",
        *_introduction(model, trained), *_measured(trained), *_not_measured(trained),
        *_classes(trained), *_training(trained), *_panels(len(trained.panels)),
        *_licence(licence),
    ])


def _metadata(licence: str) -> dict[str, object]:
    return {
        "license": licence,
        "library_name": "cosa",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "weakly-supervised", "image-level-labels", "cosa"],
    }


def _introduction(model: Model, trained: Trained) -> list[str]:
    count = len(trained.network.classes)
    title = escaped(model.repository.partition("/")[2])
    return [
        f"# {title}", "",
        f"A network for semantic segmentation with {count} class{'es' * (count > 1)} and "
        "background, trained on image-level labels alone, without any mask, by "
        f"[CoSA]({PAPER}).", "",
        "```bash", f"python infer.py photos --weights {model} --output masks --overlay", "```", "",
        "or, from Python,", "",
        "```python", "import cosa", "", f'network = cosa.load("{model}")', "```", "",
        "Weights are read from `model.safetensors` as data: no code of this repository is run. "
        "`config.json` lists classes, colours and thresholds; `config.yaml` is the configuration "
        "of the training, without the places of its files.", "",
    ]


def _told(score: str) -> str:
    return f"{NAMES[score]}: {MEANINGS[score]}"


def _measured(trained: Trained) -> list[str]:
    lines = ["## What was measured", ""]
    scores = trained.scores
    rows = [(_told(key), scores[key]) for key in NAMES
            if scores is not None and scores.get(key) is not None]
    if not rows:
        return [*lines, "Nothing: there is no evaluation of this very network.", ""]
    images = scores.get("images")
    count = "" if images is None else f"{images} "
    evaluate = trained.config.evaluate
    scales = ", ".join(f"{scale:g}" for scale in evaluate.scales)
    lines += [
        f"On {count}images ({_whose(trained)}), each squashed to {evaluate.image_size} pixels "
        f"squared, at scales {scales}{' and mirrored' * evaluate.flip}:", "",
        *_table(("score", "in %"), [(text, f"{100 * value:.1f}") for text, value in rows]), "",
    ]
    if trained.evaluations:
        lines += [f"The network was chosen as the best of {trained.evaluations} evaluations by "
                  "these scores, which therefore flatter it.", ""]
    return lines


def _whose(trained: Trained) -> str:
    """Whose images the scores are of, as a clause."""
    data, split = trained.config.data, trained.split
    if data.name == "scenes":
        kind = {"val": "validation", "test": "test"}.get(split, "other")
        return f"generated scenes of the {kind} split" + ", on which no choice was made" * (
            kind == "test")
    own = "the training images themselves, whose labels it has seen"
    if data.name == "folder" and not data.val_images:
        return own if split == "val" else f"the second half of {own}"
    if split == "test":
        return "the second half of the validation images, kept out of all choices"
    return "the validation images, on which settings may have been chosen, too"


def _not_measured(trained: Trained) -> list[str]:
    scores = trained.scores or {}
    absent = [_told(key) for key in NAMES if scores.get(key) is None]
    return ["## What was not measured", "", *(f"- {text}" for text in (*absent, *_NEVER)), ""]


def _classes(trained: Trained) -> list[str]:
    names = ("background", *trained.network.classes)
    iou = (trained.scores or {}).get("iou") or {}
    rows = []
    for number, (name, colour) in enumerate(zip(names, trained.network.palette, strict=True)):
        value = iou.get(name)
        share = "not measured" if value is None else f"{100 * value:.1f}"
        rows.append((str(number), escaped(name), "#{:02x}{:02x}{:02x}".format(*colour), share))
    return ["## Classes", "", *_table(("index", "class", "colour", "IoU in %"), rows), ""]


def _training(trained: Trained) -> list[str]:
    config = trained.config
    facts = [
        f"encoder: {escaped(config.model.encoder)}, {_start(config)}",
        f"data: {escaped(config.data.name)}, labels of whole images alone",
        f"crops of {config.augment.crop_size} pixels in batches of {config.train.batch_size}",
        f"program: CoSA {cosa.__version__}, seed {config.seed}",
    ]
    if trained.iterations is not None:
        facts.append(f"iterations: {trained.iterations}")
    if trained.seconds is not None:
        facts.append(f"time: {trained.seconds:.0f} s, evaluations included")
    if trained.peak_memory_mb is not None:
        facts.append(f"memory, at most: {trained.peak_memory_mb:.0f} MiB")
    return ["## Training", "", *(f"- {fact}" for fact in facts), ""]


def _start(config: Config) -> str:
    if not config.model.pretrained:
        return "from random weights"
    file = escaped(config.model.weights.replace("\\", "/").rpartition("/")[2])
    return f"from the pretrained weights in {file}" if file else "from pretrained weights"


def panel_names(count: int) -> list[str]:
    """Their paths in the repository: numbers, since names of images are nobody's business."""
    return [f"panels/{number:02d}.png" for number in range(1, count + 1)]


def _panels(count: int) -> list[str]:
    if not count:
        return []
    pictures = [f"![Panel {number}]({name})" for number, name in enumerate(panel_names(count), 1)]
    return ["## Panels", "", "Of the last evaluations: image, CAM, pseudo-label, segmentation and, "
            "where there is one, the true mask.", "", *_apart(pictures)]


def _licence(licence: str) -> list[str]:
    text = ("None was stated: ask who has pushed it before you use it." if licence == UNSTATED
            else f"{escaped(licence)}, as stated by who has pushed it.")
    return ["## Licence", "", f"{text} The images that it was trained on and the weights that it "
            "started from have terms of their own.", ""]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _apart(lines: Iterable[str]) -> list[str]:
    return [part for line in lines for part in (line, "")]
