"""Which measure of certainty orders images as their true IoU does: what `infer.py --review` tells.

Choices are made on one half of the validation images; the other half says what they are worth.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cosa import checkpoint
from cosa.benchmark import stamp, tables
from cosa.benchmark.campaigns.photographs import DEFAULT_CONFIG, data_options
from cosa.benchmark.campaigns.review_measures import CHOSEN, MEASURES, passes
from cosa.benchmark.campaigns.review_scores import SHARE, Scores, cost, score
from cosa.checkpoint import TrainedNetwork
from cosa.config import load_config
from cosa.core.device import choose_device, memory_errors_explained
from cosa.core.errors import UserError
from cosa.core.terminal import Parser
from cosa.core.text import aligned
from cosa.data import SegmentationDataset, build_dataset
from cosa.data.subset import with_masks
from cosa.inference.segmenter import CELLS

TOPIC = "review"
REPORT = "docs/review.md"

LEGEND = f"""\
Spearman's correlation of a measure with the image's IoU: 1 where both order the images alike, 0 by
chance. *For choices* is the mean over the networks on the first half of the images, on which what
`infer.py` tells (the row in bold) was chosen, its temperature included; all other columns are of
the other half, *others* being the mean over the networks. The IoU of an image is the mean over all
classes that its truth or its mask holds, the background included, without ignored pixels. Measures
are computed on {CELLS} cells per position along each side. *Passes* are those of the network that a
measure needs for an image."""

Results = dict[str, tuple[Scores, Scores]]
"""Network -> on the images for choices, and on the others."""


def halves(data: str) -> tuple[SegmentationDataset, SegmentationDataset]:
    """The images that have masks: those for choices, and the others.

    Raises:
        UserError: there are none.
    """
    config = load_config(DEFAULT_CONFIG, data_options(data))
    first, second = (build_dataset(config.data, split) for split in ("val", "test"))
    for dataset, half in ((first, "first"), (second, "second")):
        if not dataset.has_masks:
            raise UserError(f"{data}: no image of the {half} half of the validation images has a "
                            "mask, which the true IoU is made of: add masks")
    return with_masks(first), with_masks(second)


def load(path: str, classes: Sequence[str]) -> TrainedNetwork:
    """A network of these classes.

    Raises:
        UserError: it cannot be loaded, or has other classes.
    """
    network = checkpoint.load(path, choose_device("auto"))
    if tuple(network.classes) != tuple(classes):
        raise UserError(f"{path} has other classes than the images: give weights that were "
                        "trained on such")
    return network


def names_of(paths: Sequence[str]) -> list[str]:
    """What networks are called: the file's name, or the run folder's for best.pth and last.pth."""
    files = [Path(path) for path in paths]
    names = [file.absolute().parent.name if file.stem in ("best", "last") else file.stem
             for file in files]
    return names if len({*names}) == len(names) else [*paths]


def correlations(results: Results, row: str, half: int, refined: bool = False) -> list[float]:
    """Of each network."""
    return [both[half].correlation(row, refined) for both in results.values()]


def measures_table(results: Results, refined: bool) -> list[list[str]]:
    """A row for each measure."""
    head = ["measure", "passes", "for choices", "others", *results]
    cells = [[*head, *["others with CRF"] * refined]]
    for row in MEASURES:
        found = correlations(results, row, 1)
        numbers = [statistics.mean(correlations(results, row, 0)), statistics.mean(found), *found]
        if refined:
            numbers.append(statistics.mean(correlations(results, row, 1, True)))
        told = [tables.NOTHING if np.isnan(number) else f"{number:.2f}" for number in numbers]
        name = row
        if row == CHOSEN:
            name, told = f"**{row}**", [f"**{cell}**" for cell in told]
        cells.append([name, str(passes(row)), *told])
    return cells


def networks_table(results: Results) -> list[list[str]]:
    """A row for each network: how good its masks are, and which are looked at first."""
    cells = [["network", f"the least certain {1 / SHARE:.0%}", "all", f"the worst {1 / SHARE:.0%}"]]
    for name, (_, others) in results.items():
        cells.append([name, *(f"{100 * iou:.1f}" for iou in others.looked_at(CHOSEN))])
    return cells


def best_line(results: Results) -> str:
    """Which measures are best on the images for choices, of all and of those of a single pass."""
    means = {row: np.nan_to_num(statistics.mean(correlations(results, row, 0)), nan=-1)
             for row in MEASURES}
    best = max(MEASURES, key=means.__getitem__)
    single = max((row for row in MEASURES if passes(row) == 1), key=means.__getitem__)
    told = {"Best on the images for choices": best, "best of a single pass": single,
            "told by infer.py": CHOSEN}
    return "; ".join(f"{what}: {row} ({means[row]:.3f})" for what, row in told.items()) + "."


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare measures of certainty by how well they order images as their true IoU does."""
    parser = Parser(prog=f"python -m cosa.benchmark {TOPIC}", description=main.__doc__)
    parser.add_argument("data", metavar="DATA",
                        help="folder of photographs with masks, as for the benchmark photographs")
    parser.add_argument("--weights", nargs="+", required=True, metavar="FILE",
                        help="trained networks that have not seen these images")
    parser.add_argument("--crf", action="store_true",
                        help="also compare with the IoU of the masks that --crf refines")
    parser.add_argument("--report", metavar="FILE", default=REPORT,
                        help=f"Markdown file to put the tables in; {REPORT}")
    given = parser.parse_args(arguments)
    started = stamp.begin(TOPIC, arguments, given.report)
    tables.read_report(given.report, TOPIC)
    images, results = halves(given.data), {}
    with memory_errors_explained():
        networks = dict(zip(names_of(given.weights),
                            (load(path, images[0].classes) for path in given.weights), strict=True))
        for name, network in networks.items():
            choices = score(network, images[0], False, f"{name}, for choices")
            results[name] = choices, score(network, images[1], given.crf, f"{name}, others")
        passing, telling = cost(network)
    shown = measures_table(results, given.crf), networks_table(results)
    device = next(network.parameters()).device
    head = stamp.heading(
        started.facts(device), f"{len(images[0])} images for choices, {len(images[1])} others")
    costs = (f"A pass of {name} over an image takes {passing:.0f} ms, and what `infer.py` tells "
             f"{telling:.1f} ms.")
    looked = (f"Mean IoU in percent of the other images, by the row in bold: a person who looks at "
              f"{1 / SHARE:.0%} of them sees those of the first column, and would see those of the "
              "last if the truth were known.")
    tables.print_section(*(aligned(cells) + "\n" for cells in shown), best_line(results), costs)
    section = ["## The measures, compared", head, tables.markdown(shown[0]), LEGEND,
               best_line(results), looked, tables.markdown(shown[1]), costs]
    started.require_unchanged()
    tables.write_report(given.report, "\n\n".join(section), TOPIC)
    return 0
