"""A page of the images of a run with their masks, the least certain first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from cosa.checkpoint import TrainedNetwork
from cosa.core.errors import UserError
from cosa.core.files import write_atomically
from cosa.core.signals import Interrupts
from cosa.core.text import NAME, shown
from cosa.inference.command_line import Options
from cosa.inference.jobs import Job, Plan
from cosa.inference.places import check_places
from cosa.inference.review import certainties, look_at, read_pair
from cosa.inference.settings import Settings
from cosa.pages.markup import Markup, element, is_own, link, name, page, picture, table
from cosa.pages.style import STYLE
from cosa.pictures.palette import Color, overlay
from cosa.pictures.sheet import entry

GALLERY = "report.html"

MOST = 500
"""Images that are shown, some 20 KB each; of others there is a line."""

LEAST_SHARE = 0.001
"""Of the image's pixels: classes with less are not named."""


def gallery_places(options: Options) -> list[Path]:
    """The file that is written for a gallery."""
    return [Path(options.output, GALLERY)] if options.report else []


def check_gallery(options: Options) -> None:
    """Raise ``UserError`` if the gallery would be in the way of another file."""
    check_places(options, gallery_places(options), "--report", _is_own)


def write_gallery(
    jobs: Plan, failures: Mapping[str, str], options: Options, network: TrainedNetwork,
    settings: Settings, stop: Interrupts,
) -> tuple[dict[str, str], bool]:
    """Write the page of all images.

    Args:
        jobs: of all images.
        failures: names of the images that have no mask of this run, and why.

    Returns:
        Names of the images that failed further, each of which is told, and why; and whether a
        signal came: nothing is written then.

    Raises:
        UserError: the file cannot be written.
    """
    (place,) = gallery_places(options)
    good, broken = jobs.only(file not in failures for file in jobs.files), {}
    try:
        known = certainties(good, options.workers, broken, stop)
        least = [(good[index], value) for value, index in known[:MOST]]
        make = partial(_card, network, settings, place)
        # A few at a time: these are whole images.
        cards = look_at(make, least, min(2, options.workers), broken, stop)
    except KeyboardInterrupt:
        return broken, True
    others = [(good[index], value) for value, index in known[MOST:]]
    errors = sorted({**failures, **broken}.items())
    write_atomically(place, _page(jobs, cards, others, errors, network, place))
    return broken, False


def _is_own(place: Path) -> bool:
    try:
        return is_own(place)
    except OSError:
        return False


def _page(
    jobs: Plan, cards: Sequence[Markup], others: Sequence[tuple[Job, float]],
    errors: Sequence[tuple[str, str]], network: TrainedNetwork, place: Path,
) -> str:
    told = f"{len(jobs)} images, the least certain first"
    if others:
        told += f"; pictures of the first {len(cards)}, then a line for each"
    keys = element("ul", (
        element("li", _swatch(color), name(shown(label, NAME)))
        for label, color in zip(network.classes, network.palette[1:], strict=True)
    ), class_="legend keys")
    rows = ((_linked(job.source, job.name, place), f"{value:.3f}",
             _linked(job.results["mask"], "mask", place)) for job, value in others)
    return page(
        "CoSA: images and masks", STYLE,
        element("h1", "Images and masks"),
        element("p", told + ". How sure the network is of a mask is in [0, 1], before any CRF. "
                     "There is no truth here: it is an order to look at them in, no score.",
                class_="pale"),
        element("section", element("h2", "Classes"), keys),
        element("section", element("h2", "Images"), element("div", cards, class_="gallery"))
        if cards else None,
        element("section", element("h2", "Others"),
                table(("image", "certainty", ""), rows)) if others else None,
        element("section", element("h2", "Failed"), (
            element("p", name(file), ": ", why, class_="warning") for file, why in errors))
        if errors else None,
    )


def _card(
    network: TrainedNetwork, settings: Settings, place: Path, found: tuple[Job, float]
) -> Markup | UserError:
    """An image beside itself with its mask, its classes; or why it cannot be shown."""
    job, value = found
    try:
        image, mask = read_pair(job, network.num_classes, settings.reading)
    except UserError as error:
        return error
    counts = np.bincount(mask.ravel(), minlength=network.num_classes + 1)
    small = entry(job.name, "", image, mask)
    covered = overlay(small.image, small.mask, network.palette)
    result = job.results.get("overlay", job.results["mask"])
    return element(
        "figure",
        element("div", element("a", _picture(small.image), href=_address(job.source, place)),
                element("a", _picture(covered), href=_address(result, place)), class_="pair"),
        element("h3", _linked(job.source, job.name, place)),
        element("ul", element("li", f"certainty {value:.2f}"),
                _shares(counts / mask.size, network.classes, network.palette), class_="legend"),
    )


def _picture(image: Image.Image) -> Markup:
    return element("img", src=picture(image), alt="", width=image.width, height=image.height)


def _shares(
    shares: np.ndarray, classes: Sequence[str], palette: Sequence[Color]
) -> list[Markup]:
    """The classes of a mask and their shares of the image, the largest first."""
    there = [label for label in np.argsort(-shares[1:], kind="stable") + 1
             if shares[label] >= LEAST_SHARE]
    return [
        element("li", _swatch(palette[label]), name(shown(classes[label - 1], NAME)),
                f" {100 * shares[label]:.1f} %")
        for label in there
    ] or [element("li", "no class")]


def _swatch(color: Color) -> Markup:
    red, green, blue = color
    return element("span", class_="swatch", style=f"--c:rgb({red},{green},{blue})")


def _linked(path: Path, text: str, place: Path) -> Markup:
    return element("a", name(shown(text, NAME)), href=_address(path, place))


def _address(path: Path, place: Path) -> Markup:
    """Where a file is, seen from the page."""
    return link(PurePath(os.path.relpath(path, place.parent)))
