"""What the counts of a data set say about it: a function for each rule, and one list of them."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from cosa.core import IGNORE
from cosa.data.check.statistics import Statistics, quoted

FEW, NEARLY_ALL = 0.05, 0.9
"""Shares of masks whose classes are not those of the labels, from which on it is a warning (a few
are usual: tiny objects, crowds) and an error."""

EVERYWHERE = 0.95
"""Share of the images from which on a class is in nearly every one."""

ENOUGH = 5
"""Of fewer images, one cannot say that a class is in all of them: it may be chance."""

SEVERAL = 3
"""Of fewer masks, what all have in common may be chance."""

SLIPS, USUAL, ALIKE = 2, 3, 0.8
"""A label of so few images at most is taken for misspelt beside one of so many times as many that
is so much alike (``difflib``'s ratio)."""

DARK = 15
"""The largest value of images that are nearly black."""

NO_NAMES = {"nan", "none", "null", "na", "n/a", "#n/a", "<na>", "-", "?", "unlabeled", "unlabelled"}
"""What spreadsheets and programs write for a label that is missing; the last are Roboflow's."""


@dataclass(frozen=True)
class Finding:
    """Something wrong ("error": the training or score would mean nothing) or odd ("warning")."""

    severity: str
    sentence: str


def judged(statistics: Statistics) -> list[Finding]:
    """What all rules find, errors first."""
    # The classes of a validation set are those of the training, the weights' are as they are.
    rules = (*OF_NAMES, *RULES) if statistics.split == "training" else RULES
    found = [finding for rule in rules for finding in rule(statistics)]
    return sorted(found, key=lambda finding: finding.severity != "error")


def error(sentence: str) -> Finding:
    return Finding("error", sentence)


def warning(sentence: str) -> Finding:
    return Finding("warning", sentence)


# Names of classes


def names_that_are_none(s: Statistics) -> Iterator[Finding]:
    missing = [name for name in s.classes if name.strip().casefold() in NO_NAMES]
    if missing:
        yield error(f"{quoted(missing)} is among the class names: a missing label was written so; "
                    "leave the field of an image without labels empty in the labels file, and "
                    "remove a column of that name")


def names_that_look_alike(s: Statistics) -> Iterator[Finding]:
    alike = defaultdict(list)
    for name in s.classes:
        alike["".join(name.casefold().split())].append(name)
    for names in alike.values():
        if len(names) > 1:
            yield error(f"the classes {quoted(names)} differ in case or blanks only: write them "
                        "alike in the labels file, and in that of the classes")


def names_that_are_several(s: Statistics) -> Iterator[Finding]:
    """Blanks and commas belong to many names: they separate where the parts are classes."""
    known = set(s.classes)
    joined = []
    for name in s.classes:
        words, parts = name.split(), [part.strip() for part in re.split("[,/&+]", name)]
        if (
            re.search("[|;]", name)
            or (len(words) > 1 and known.issuperset(words))
            or (len(parts) > 1 and not known.isdisjoint(parts))
        ):
            joined.append(name)
    if joined:
        yield error(f"the class {quoted(joined)} looks like several labels in one: separate labels "
                    "by ';' in the labels file (image,labels), set data.label_separator to what "
                    "separates them, or rename the class")


# Image-level labels


def labels_that_look_misspelt(s: Statistics) -> Iterator[Finding]:
    """No error: cat and car are one letter apart, and a rare class may be meant."""
    if s.split != "training" or s.labels is None:
        return
    count = dict(zip(s.classes, s.labels.of_class, strict=True))
    pairs = [(rare, common) for rare, few in count.items() if 0 < few <= SLIPS
             for common, many in count.items() if many >= USUAL * few and _alike(rare, common)]
    if pairs:
        told = ", ".join(f"{quoted([rare])} ({count[rare]}) beside {quoted([common])} "
                         f"({count[common]})" for rare, common in pairs[:SEVERAL])
        yield warning(f"labels of few training images look like misspelt ones of many: {told}; "
                      "correct them in the labels file unless they are meant")


def nothing_to_tell_apart(s: Statistics) -> Iterator[Finding]:
    """Unless the user says so, images without a label are no examples of images without a class."""
    if s.split != "training" or s.labels is None:
        return
    if s.labels.unlabelled == s.labels.images:
        yield error("no training image has a label, so there is nothing to learn from: check the "
                    "labels of the training split")
        return
    present = [c for c, n in zip(s.classes, s.labels.of_class, strict=True) if n]
    everywhere = [c for c, n in zip(s.classes, s.labels.of_class, strict=True) if n == s.shown]
    if s.shown > 1 and present == everywhere:
        without = "" if s.labels.unlabelled else (
            "add images without it, with an empty label (of subfolders: in one called "
            "'background'), and ")
        yield error(f"all {s.shown} training images that have a label have the same, "
                    f"{quoted(present)}: there is nothing to tell it from, and classification "
                    f"learns nothing; {without}set data.negatives=true, or add images of other "
                    "things, with a class of their own")


def classes_everywhere(s: Statistics) -> Iterator[Finding]:
    if s.labels is None:
        return
    found = [c for c, n in zip(s.classes, s.labels.of_class, strict=True)
             if n >= EVERYWHERE * s.shown]
    if s.shown >= ENOUGH and found:
        yield warning(f"{quoted(found)} is in (nearly) every one of {s.shown} {s.split} images: "
                      "there is little to tell it from, and its classification scores say nothing")


def classes_nowhere(s: Statistics) -> Iterator[Finding]:
    """No error: the lists of VOC and COCO are fixed, and the other classes learn as well."""
    if s.split != "training" or s.labels is None:
        return
    absent = [c for c, n in zip(s.classes, s.labels.of_class, strict=True) if not n]
    if absent:
        yield warning(f"no training image has the label {quoted(absent)}: the network cannot "
                      "learn it")


def images_without_labels(s: Statistics) -> Iterator[Finding]:
    if s.split == "training" and s.labels is not None and s.shown < s.labels.images:
        yield warning(f"{s.labels.unlabelled} of {s.labels.images} training images have no label "
                      "and are not trained on: if they show none of the classes, set "
                      "data.negatives=true")


# Images


def images_of_one_colour(s: Statistics) -> Iterator[Finding]:
    if s.images is None or not s.images.plain.count:
        return
    count, example = s.images.plain.count, s.images.plain.example
    if s.split == "training" and count == s.images.decoded > 1:
        deep = s.images.doubtful.example
        remedy = f"set data.value_range=auto ({deep})" if deep else "check data.images or data.root"
        yield error(f"each of {count} training images is of a single colour, such as {example}: "
                    f"{remedy}")
    else:
        yield warning(f"{count} of {s.images.decoded} {s.split} images are of a single colour, "
                      f"such as {example}")


def values_that_seem_misread(s: Statistics) -> Iterator[Finding]:
    """12 bits in files of 16, for one, come out nearly black."""
    if s.images is not None and s.images.doubtful.count:
        yield warning(f"{s.images.doubtful.count} of {s.images.decoded} {s.split} images seem to "
                      f"be misread, such as {s.images.doubtful.example}; if it should be another "
                      "range, set data.value_range=auto, or to [low, high]")


def images_nearly_black(s: Statistics) -> Iterator[Finding]:
    if s.images is None or s.images.doubtful.count:  # that is said of them already
        return
    if s.images.highest <= DARK and s.images.plain.count == 0:
        yield warning(f"no {s.split} image has a value above {s.images.highest} of 255: they are "
                      "nearly black; are they masks, or values of 0..1 saved as integers?")


# Masks


def masks_without_classes(s: Statistics) -> Iterator[Finding]:
    """The commonest mistake: 0 and 255 as in a picture in black and white."""
    m = s.masks
    if m is None or not m.read:
        return
    last = len(s.classes)
    none, named = not any(m.masks[1:]), m.labelled.count
    instead = (f"write the class index, 1..{last}, where the object is; {IGNORE} means 'does not "
               "count' (in COCO's files: give each annotation its outline)")
    denied = s.split == "true" and m.known.count and not named  # labels say: no class here
    if m.ignored_alone.count > named / 2 or (none and m.ignored_masks and not denied):
        example = m.ignored_alone.example or m.first
        count = m.ignored_alone.count or m.ignored_masks
        yield error(f"{count} of {m.read} {s.split} masks hold no value but 0 and {IGNORE}"
                    f"{_such_as(example)}: {instead}; or name white in a colour map (data.colors, "
                    "--colors)")
    elif m.background_alone.count > named / 2:
        yield error(f"{m.background_alone.count} of {m.read} {s.split} masks hold the background "
                    f"alone though the labels name classes{_such_as(m.background_alone.example)}: "
                    f"{instead}")
    elif none:
        sentence = (f"none of {m.read} {s.split} masks holds a class: the score would be that of "
                    "the background alone")
        # Images without any class are a test of false alarms, if that is meant.
        yield warning(sentence) if s.split == "true" else error(
            f"{sentence}{_such_as(m.first)}: {instead}; or train without masks")


def masks_unreadable(s: Statistics) -> Iterator[Finding]:
    m = s.masks
    if m is not None and m.unreadable.count and not m.read:
        yield error(f"none of {m.unreadable.count} {s.split} masks can be scored: "
                    f"{m.unreadable.example}")


def masks_nearly_ignored(s: Statistics) -> Iterator[Finding]:
    m = s.masks
    if m is not None and m.mostly_ignored.count > m.read / 2:
        yield error(f"{m.mostly_ignored.count} of {m.read} {s.split} masks are {IGNORE} nearly "
                    f"everywhere{_such_as(m.mostly_ignored.example)}: {IGNORE} means 'does not "
                    "count', and nothing is left to score; the background is 0")


def background_that_is_not_0(s: Statistics) -> Iterator[Finding]:
    """Another value is in all masks, at their borders and beside classes.

    Where 0 occurs nowhere, it is an error. Else it may be right: in rooms, the wall is everywhere.
    """
    m = s.masks
    if m is None or m.read < SEVERAL:
        return
    value, found = m.border.value, error if m.masks[0] <= m.read / 50 else warning
    if found is warning and value == IGNORE:  # as around pictures that were turned
        return
    if value and m.border.masks >= NEARLY_ALL * m.read and m.border.share > 0.5 and (
        m.border.beside > m.read / 2
    ):
        name = "" if value == IGNORE else f", which means {quoted([s.classes[value - 1]])},"
        held = f"{m.masks[0]} of {m.read}" if m.masks[0] else f"none of {m.read}"
        yield found(f"0, the background, is in {held} {s.split} masks, and {value}{name} is in "
                    f"{m.border.masks} and on most of their borders: it is the background, it "
                    f"seems; write 0 in its place, and the classes as 1..{len(s.classes)}")


def labels_against_masks(s: Statistics) -> Iterator[Finding]:
    m = s.masks
    # That no mask holds a class is a finding of its own.
    if m is None or m.disagreeing.count <= FEW * m.comparable.count or not any(m.masks[1:]):
        return
    sentence = (f"{m.disagreeing.count} of {m.comparable.count} {s.split} masks do not hold the "
                f"classes of the labels ({m.lacking.count} lack a labelled class, "
                f"{m.unlabelled.count} hold one that is not labelled), such as "
                f"{m.disagreeing.example}")
    if m.comparable.count >= SEVERAL and m.disagreeing.count >= NEARLY_ALL * m.comparable.count:
        yield error(f"{sentence}: names or order of the classes are wrong, or the labels are of "
                    "other images; mask value k is the k-th class")
    else:
        yield warning(sentence)


def _alike(one: str, other: str) -> bool:
    """Whether the names differ by a letter or two of many, or by the order of their letters."""
    return (sorted(one) == sorted(other)
            or difflib.SequenceMatcher(None, one, other).ratio() >= ALIKE)


def _such_as(example: str) -> str:
    return f", such as {example}" if example else ""


OF_NAMES = (names_that_are_none, names_that_look_alike, names_that_are_several)

RULES = (
    labels_that_look_misspelt, nothing_to_tell_apart, classes_everywhere, classes_nowhere,
    images_without_labels,
    images_of_one_colour, values_that_seem_misread, images_nearly_black,
    masks_unreadable, masks_without_classes, masks_nearly_ignored, background_that_is_not_0,
    labels_against_masks,
)
