"""CoSA on real photographs: its parts, bounds and regularizers, on the same budget.

Choices, the peak of classification among them, are made on one half of the validation images; the
tables are of the other half (``data.hold_out``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from cosa.benchmark import stamp, tables
from cosa.benchmark.campaigns import ablation, campaign
from cosa.benchmark.campaigns.ablation import CLASSIFICATION, SUPERVISED
from cosa.benchmark.campaigns.ablation_table import LINES, Line, table
from cosa.benchmark.campaigns.peak import PEAK_EVALUATIONS
from cosa.benchmark.campaigns.photograph_scores import TRAIN_IMAGES, scores_file
from cosa.benchmark.campaigns.regularizers import ALL, LABELS, fitted
from cosa.benchmark.campaigns.regularizers import PLAIN as COSA
from cosa.benchmark.campaigns.regularizers import overrides_of as switched_on
from cosa.benchmark.campaigns.runner import Run
from cosa.benchmark.campaigns.statistics import Results
from cosa.benchmark.campaigns.verdicts import Verdict, difference, dynamic, reaches, share
from cosa.config import Config, load_config
from cosa.config.regularizers import RegularizersConfig
from cosa.core.errors import UserError
from cosa.core.files import PROJECT_FOLDER
from cosa.core.ranges import whole
from cosa.data import build_dataset
from cosa.data.base import expanded
from cosa.data.voc import look_for_root
from cosa.scores import CAM_THRESHOLDS

TOPIC = "photographs"
DEFAULT_CONFIG = "configs/photographs.yaml"

EXAMPLE = PROJECT_FOLDER / "configs" / "photographs_regularizers.yaml"
"""The regularizers as they are switched on, one by one and all."""

REGULARIZERS = {row: label for row, label in LABELS.items() if row != COSA}
"""Row -> its name in the tables."""

OFF = [f"regularizers.{item.name}.weight=0" for item in fields(RegularizersConfig)]
"""What other rows are trained without, even if the configuration has it."""

SUPERVISED_STEPS = 2
"""By so many steps at most the bound's segmentation is spread: true masks leave less to fill, and
of the numbers tried this one was best on the half for choices (docs/photographs.md)."""

PLAIN = "without-spreading"
COMPARED_PLAIN = (CLASSIFICATION, COSA)
"""Rows whose CAMs are scored once more as they are, before they are spread."""

CHANGES: campaign.Rows = {
    **ablation.ROWS,
    SUPERVISED: lambda base: [f"model.seg_steps={min(base.model.seg_steps, SUPERVISED_STEPS)}"],
    PLAIN: lambda base: ["model.cam_steps=0", "model.seg_steps=0"],
    **{row: lambda base, row=row: regularizer_changes(row, base) for row in REGULARIZERS},
}

ROWS: campaign.Rows = {
    row: lambda base, changes=changes: [*OFF, *changes(base)] for row, changes in CHANGES.items()
}

SCORED_LINES = {SUPERVISED: {SUPERVISED: "supervised.pth"},
                CLASSIFICATION: {f"{CLASSIFICATION}-end": "last.pth",
                                 f"{CLASSIFICATION}-peak": "best.pth"}}
"""Row -> the lines of the tables that it fills, and whose weights these are of; every other row
fills its own line with last.pth."""

TABLE_LINES = (
    *LINES,
    Line(PLAIN, "without spreading"),
    *(Line(row, label) for row, label in REGULARIZERS.items()),
)

SEGMENTATION = ("miou", "share", "miou_label_filtered", "crf_miou", "boundary_f", "jf", "cmiou")
CAMS = ("cam_miou", "cam_best_miou", "plain_cam_best_miou", "aux_cam_miou", "cam_cmiou",
        "train_cam_miou", "train_cam_best_miou", "train_aux_cam_miou")
COSTS = ("training_seconds", "peak_memory_mb")

VOC_IMAGES = 10_582
"""Training images of published scores on VOC."""

SEGMENTATION_LEGEND = f"""\
All scores are in percent, mean ± standard deviation over the seeds, of the averaged (EMA) network.
`mIoU` is label-free: nothing but the image leads to the prediction. `mIoU filtered` leaves out the
classes that the image does not have, as published tables do; `mIoU with CRF` is label-free, of what
`infer.py --crf` makes of the images. `F` is the contour quality, `J&F` its mean with `mIoU`, both
without CRF; `C-mIoU` averages the coexistence classes. *Without spreading* is CoSA as published:
no map is averaged over positions that look alike (`model.cam_steps`, `model.seg_steps`); full
supervision is spread by {SUPERVISED_STEPS} steps at most."""

CAMS_LEGEND = f"""\
mIoU of CAMs, always filtered by the image's labels. `CAM at ξ` uses the run's own threshold
(classification alone adapts none and has no such score), `CAM best` the best of
{len(CAM_THRESHOLDS)} thresholds, chosen on the masks, hence an upper bound; `aux` is the auxiliary
CAM. *Not spread* are CAMs as the classifier yields them, without `model.cam_steps`. `CPL` are the
CAM's pseudo-labels at ξ on training images, whose masks no row but the bound is trained on. *At its
peak* is the checkpoint with the best `CAM best` on the first half of the validation images, of
about {PEAK_EVALUATIONS} during the run, scored as the others are."""

COSTS_LEGEND = """\
`seconds` is the training time without evaluations, `peak MiB` the largest resident set of the
training process (on CUDA, what PyTorch allocated)."""


def regularizer_changes(row: str, base: Config) -> list[str]:
    """The overrides of a row of ``REGULARIZERS``, fitted to schedule and crops of ``base``."""
    found = fitted(load_config(EXAMPLE), base)
    alone = found if row == ALL else RegularizersConfig(**{row: getattr(found, row)})
    return switched_on(alone)


def data_options(folder: str) -> list[str]:
    """The overrides by which a folder of photographs is read, half of the scored ones held out.

    Raises:
        UserError: it is none, and the sentence says what one is.
    """
    path = expanded(folder)
    if not path.is_dir():
        raise UserError(f"{folder}: there is no such folder; give that of the photographs")
    voc = look_for_root(path)
    if voc is not None:
        lists = voc / "ImageSets" / "Segmentation"
        if not lists.is_dir():
            raise UserError(f"{voc} has JPEGImages, but no ImageSets/Segmentation with the lists "
                            "train.txt and val.txt: unpack all of VOC 2012")
        augmented = (lists / "train_aug.txt").is_file() or (voc / "SegmentationClassAug").is_dir()
        found = {"name": "voc", "train_split": "train_aug" if augmented else "train",
                 "val_split": "val"}
    elif (path / "images").is_dir() and (path / "labels.csv").is_file():
        files = {"images": "images", "labels": "labels.csv", "masks": "masks",
                 "classes": "classes.txt", "val_images": "val/images",
                 "val_labels": "val/labels.csv", "val_masks": "val/masks"}
        found = {"name": "folder"} | {key: name for key, name in files.items()
                                      if (path / name).exists()}
    else:
        raise UserError(f"{folder} holds neither JPEGImages and ImageSets, as VOC does, nor images "
                        "and labels.csv, as configs/custom.yaml describes: give a folder that does")
    found |= {"root": folder, "hold_out": True}
    return [f"data.{key}={json.dumps(value)}" for key, value in found.items()]


def overrides_of(folder: str, config: str, given: Sequence[str]) -> list[str]:
    """The overrides of all runs: the data, VOC's coexistence classes unless others are chosen."""
    data = data_options(folder)
    whole = load_config(config, [*data, *given])
    if whole.data.name == "voc" and not whole.evaluate.coexistence_classes:
        voc = load_config(PROJECT_FOLDER / "configs" / "voc.yaml").evaluate.coexistence_classes
        data.append(f"evaluate.coexistence_classes={json.dumps(voc)}")
    return [*data, *given]


def count_images(config: Config, rows: Sequence[str]) -> dict[str, int]:
    """Numbers of the images: ``train`` and, of these, ``masked``; ``val`` and ``test``.

    Raises:
        UserError: they are not usable, or masks are missing without which there is no score.
    """
    data = config.data
    if data.name == "folder" and not data.val_images:
        raise UserError("the images to score on must be others than those to train on: put them "
                        f"into {data.root or '.'}/val/images, or set data.val_images")
    train = build_dataset(data, "train")
    halves = {split: build_dataset(data, split) for split in ("val", "test")}
    for split, dataset in halves.items():
        if not dataset.has_masks:
            half = "first" if split == "val" else "second"
            raise UserError(f"{data.root}: no image of the {half} half of the validation images "
                            "has a mask, and without masks there is no score: add masks"
                            + (" as data.val_masks" if data.name == "folder" else ""))
    masked = sum(train.has_mask(index) for index in range(len(train)))
    if SUPERVISED in rows and not masked:
        raise UserError(f"{data.root}: no training image has a mask, which the row `{SUPERVISED}` "
                        "is trained on: add masks, or leave it out with --rows")
    return {"train": len(train), "masked": masked,
            **{split: len(dataset) for split, dataset in halves.items()}}


def commands(
    row: str, config: str, changes: list[str], train_images: int
) -> tuple[tuple[str, ...], ...]:
    """What makes a run of a row: that of the ablation, and its further scores."""
    done, scored = load_config(config, changes), scored_lines(row)
    trained = next(line for line in TABLE_LINES if line.row in scored)
    files = [f"{done.output}/{done.name}/{weights}" for weights in scored.values()]
    options = ["--train-images", str(train_images if trained.trains_cams else 0)]
    options += ["--crf"] if trained.trains_segmentation else []
    options += ["--plain-cam"] if row in COMPARED_PLAIN else []
    further = campaign.benchmark_command("photograph_scores", *files, *options)
    return *ablation.commands(row, config, changes), further


def scored_lines(row: str) -> dict[str, str]:
    """The lines of the tables that a row fills, and the weights in its folder that they score."""
    return SCORED_LINES.get(row, {row: "last.pth"})


def collect(runs: Sequence[Run]) -> Results:
    """Scores of finished runs, line by line of the tables."""
    results = ablation.collect(runs)
    for run in runs:
        for line, weights in scored_lines(run.row).items():
            results[line][run.config.seed] |= campaign.read_json(scores_file(run.folder / weights))
    return results


def verdicts(results: Results) -> list[Verdict]:
    """All claims; "not measured" where rows or scores are missing."""
    cosa, peak = COSA, f"{CLASSIFICATION}-peak"
    scores = {"train_cam_miou": "CPL on training images", "miou": "mIoU"}
    judged = [
        share(results, 0.85, "CoSA reaches 85 % of the supervised bound"),
        share(results, 0.9, "CoSA reaches 90 % of the supervised bound (the aim)"),
        reaches(results, "CoSA reaches a label-free mIoU of 45", (cosa, "miou"), 0.45),
        difference(
            results, "CoSA is 5 points above the CAMs of classification alone at their peak",
            (cosa, "miou"), (peak, "cam_best_miou"), margin=0.05,
            note="label-free against CAMs at their best threshold and with image labels",
        ),
        difference(
            results, "CoSA's CAM at the end is above that of classification alone at its peak",
            (cosa, "cam_best_miou"), (peak, "cam_best_miou"), note="both at their best threshold",
        ),
        difference(
            results, "CoSA is 5 points over these CAMs before they are spread",
            (cosa, "miou"), (peak, "plain_cam_best_miou"), margin=0.05,
        ),
        difference(
            results, "CoSA's CAM is above them, too, neither being spread",
            (cosa, "plain_cam_best_miou"), (peak, "plain_cam_best_miou"),
        ),
    ]
    for key, name in scores.items():
        judged += [
            difference(results, f"{part} helps ({name})", (cosa, key), (f"without-{row}", key))
            for row, part in {"swapping": "swapping (Seg2CAM)", "raw": "RAW", "csc": "CSC"}.items()
        ]
        judged.append(dynamic(
            results, key, f"the dynamic threshold is above the best fixed one ({name})"
        ))
    judged.append(difference(
        results, "spreading over what is alike helps (mIoU)", (cosa, "miou"), (PLAIN, "miou"),
    ))
    judged.append(difference(
        results, "all regularizers together add 2 points (mIoU)", (ALL, "miou"), (cosa, "miou"),
        margin=0.02,
    ))
    judged += [
        difference(results, f"{label} helps (mIoU)", (row, "miou"), (cosa, "miou"))
        for row, label in REGULARIZERS.items()
    ]
    return judged


def all_tables(results: Results) -> list[list[list[str]]]:
    """The tables of segmentation, of CAMs and pseudo-labels, and of cost.

    Those of scores leave out the lines that train nothing of their kind.
    """
    segmentation = [line for line in TABLE_LINES if line.trains_segmentation]
    cams = [line for line in TABLE_LINES if line.trains_cams]
    trained = [line for line in TABLE_LINES if line.row != f"{CLASSIFICATION}-peak"]
    return [table(results, segmentation, SEGMENTATION), table(results, cams, CAMS),
            table(results, trained, COSTS)]


def data_line(images: dict[str, int], config: dict[str, Any], train_images: int) -> str:
    """Which images there are, and what the scores must not be compared with."""
    told = (f"{images['train']} training images ({images['masked']} with a mask), "
            f"{images['val']} validation images for choices, {images['test']} for the tables; CPL "
            f"of {min(train_images, images['masked'])} training images, evenly spread.")
    if config["data"]["name"] == "voc" and images["train"] < VOC_IMAGES:
        return (f"{told} **These scores are not comparable with published ones**, which come from "
                f"{VOC_IMAGES:,} training images of VOC and from all 1,449 validation images.")
    return f"{told} These scores are comparable with each other, not with published ones."


def make_section(
    facts: dict[str, Any], results: Results, base: Config, judged: Sequence[Verdict]
) -> str:
    """The Markdown of the report.

    Args:
        facts: of the campaign, with ``images`` and ``train_images``.
        base: what the rows change.
    """
    changes = {label: regularizer_changes(row, base) for row, label in REGULARIZERS.items()
               if row in results}
    legends = (SEGMENTATION_LEGEND, CAMS_LEGEND, COSTS_LEGEND)
    shown = [(cells, legend) for cells, legend in zip(all_tables(results), legends, strict=True)
             if len(cells) > 1]
    return "\n".join([
        *campaign.head("Photographs", facts, results),
        data_line(facts["images"], facts["config"], facts["train_images"]),
        *([campaign.changes_line(changes)] if changes else []),
        "",
        *(text for cells, legend in shown for text in (tables.markdown(cells), "", legend, "")),
        *campaign.verdict_lines(judged),
        "",
        campaign.chance_line(sum("helps" in v.claim for v in judged), len(facts["seeds"])),
    ])


def add_options(parser: argparse.ArgumentParser) -> None:
    """DATA and ``--train-images``."""
    parser.add_argument("data", metavar="DATA",
                        help="folder of the photographs, in VOC's layout (JPEGImages, ImageSets, "
                        "...), or with images, labels.csv, masks and val/images, val/masks, ...; "
                        "see configs/custom.yaml")
    parser.add_argument("--train-images", type=whole(0, 10**6), default=TRAIN_IMAGES, metavar="N",
                        help="training images whose pseudo-labels are scored, evenly spread, 0 for "
                        f"none; {TRAIN_IMAGES}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train CoSA, its parts, its bounds and its regularizers on photographs; write the tables.

    Finished runs are kept: started again, an interrupted benchmark goes on.
    """
    given = campaign.parse(TOPIC, main.__doc__, ROWS, arguments, DEFAULT_CONFIG, add_options)
    given.overrides = overrides_of(given.data, given.config, given.overrides)
    campaign.settle(given)
    base = load_config(given.config, given.overrides)
    images = count_images(base, given.rows)
    started = stamp.begin(TOPIC, arguments, given.report)
    runs, facts = campaign.execute(
        started, ROWS, given, partial(commands, train_images=given.train_images),
        {"train_images": given.train_images},
    )
    facts |= {"images": images, "train_images": given.train_images}
    results = collect(runs)
    judged = verdicts(results)
    section = make_section(facts, results, base, judged)
    numbers = {**facts, "runs": results}
    campaign.publish(started, given, numbers, judged, all_tables(results), section)
    return 0
