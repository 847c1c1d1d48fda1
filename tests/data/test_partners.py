import numpy as np
import pytest
import torch
from PIL import Image

from cosa.core.errors import UserError
from cosa.data import loader, order, partners
from cosa.data.base import SegmentationDataset
from cosa.data.batches import to_device
from cosa.data.loader import TrainingViews, training_loader
from cosa.data.partners import PartnerViews, cooccurrence

AUGMENT = dict(crop_size=16, scale_min=0.5, scale_max=2.0, flip=0.5, blur=0.5, strong=True)

GREY = torch.full((3, 1, 1), 0.25)


class Plain(SegmentationDataset):
    """Image i has the red level 7 i throughout; touching a mask is an error."""

    has_masks = True

    def __init__(self, rows):
        self.labels = np.array(rows, dtype=np.uint8)
        self.classes = tuple("abcdefgh"[: self.labels.shape[1]])
        self.palette = [(k, k, k) for k in range(self.labels.shape[1] + 1)]
        self.names = [str(i) for i in range(len(rows))]

    def image(self, index):
        pixels = np.full((24, 20, 3), 7 * index, dtype=np.uint8)
        pixels[..., 1] = 10 * np.arange(24)[:, None]
        pixels[..., 2] = 12 * np.arange(20)
        return Image.fromarray(pixels)

    def mask(self, index):
        raise AssertionError("training read a mask")


# Classes a to d; d has no image to itself. Image 6 has no label.
ROWS = (
    [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 1, 0, 1],
    [0, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0],
)
SINGLE = {0: {0, 1, 8}, 1: {2}, 2: {3}}
MULTI = (4, 5, 7)


def stream(rows=ROWS, seed=0, kind=PartnerViews, **options):
    return kind(Plain(rows), seed, **AUGMENT | options)


def red_level(sample):
    """The level of a partner's view in its red channel."""
    return round(sample["partner"][..., 0][sample["partner_valid"]].float().mean().item())


# Eq. (1)


def test_cooccurrence_by_hand():
    # a alone, a with b twice, c alone, and a class without images
    labels = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], dtype=np.uint8)
    expected = [[3 / 5, 2 / 5, 0, 0], [1 / 2, 1 / 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert np.allclose(cooccurrence(labels), expected, rtol=0, atol=1e-15)


def test_cooccurrence_against_counting():
    labels = np.random.default_rng(0).integers(0, 2, (300, 5)).astype(np.uint8)
    assert labels.sum() > 255, "the counts leave the range of the labels' type"
    counts = np.zeros((5, 5))
    for row in labels:
        for i in range(5):
            for j in range(5):
                counts[i, j] += row[i] and row[j]
    assert np.allclose(cooccurrence(labels), counts / counts.sum(axis=1)[:, None])


# Which partner


def test_probabilities_by_hand():
    views = stream()
    # Rows of N: a (5, 2, 1, 0), b (2, 4, 1, 1), c (1, 1, 2, 0), d (0, 1, 0, 1). d is never pasted.
    chances = np.array([5 / 8 + 2 / 8, 2 / 8 + 4 / 8, 1 / 8 + 1 / 8, 0])
    assert np.allclose(views.class_probabilities(4), chances / chances.sum())
    chances = np.array([2 / 8, 4 / 8 + 1 / 2, 1 / 8, 0])
    assert np.allclose(views.class_probabilities(5), chances / chances.sum())
    for single in (0, 2, 3, 6):
        assert not views.class_probabilities(single).any()


def test_partners_are_drawn_with_these_probabilities():
    views, draws = stream(), 3000
    for index in MULTI:
        rng = np.random.default_rng(index)
        drawn = [views.draw_partner(index, rng) for _ in range(draws)]
        counts = np.bincount([kind for kind, _ in drawn], minlength=4)
        expected = views.class_probabilities(index) * draws
        assert counts[3] == 0
        # chi-square of 2 degrees of freedom: 13.8 is passed by one in a thousand
        assert ((counts - expected)[:3] ** 2 / expected[:3]).sum() < 13.8
        of_a = np.bincount([partner for kind, partner in drawn if kind == 0], minlength=9)
        share = counts[0] / 3
        assert ((of_a[[0, 1, 8]] - share) ** 2 / share).sum() < 13.8
        assert all(partner in SINGLE[kind] for kind, partner in drawn)


def test_a_partner_is_a_single_label_image_of_its_class():
    views, seen = stream(), set()
    for position in range(80):
        sample = views[position]
        kind = sample["partner_class"]
        if sample["index"] in MULTI:
            assert red_level(sample) / 7 in SINGLE[kind]
            seen.add((sample["index"], red_level(sample)))
        else:
            assert kind == -1
            assert not sample["partner"].any() and not sample["partner_valid"].any()
    assert len(seen) > len(MULTI), "the partner does not change from epoch to epoch"


def test_multi_label_images_without_any_partner_have_none():
    views = stream([[1, 1, 0], [0, 0, 1], [0, 0, 1]])
    samples = [views[position] for position in range(9)]
    assert {sample["partner_class"] for sample in samples} == {-1}
    assert {sample["index"] for sample in samples} == {0, 1, 2}


# The stream


def test_samples_have_the_documented_content():
    batches = training_loader(
        Plain(ROWS), batch_size=8, seed=0, iterations=2, workers=0, stream=PartnerViews, **AUGMENT
    )
    for batch in (to_device(batch, "cpu", GREY) for batch in batches):
        assert batch["partner"].shape == (8, 3, 16, 16)
        assert batch["partner"].dtype == torch.float32
        assert batch["partner_valid"].shape == (8, 16, 16)
        assert batch["partner_valid"].dtype == torch.bool
        assert batch["partner_class"].shape == (8,) and batch["partner_class"].dtype == torch.int64
        padding = ~batch["partner_valid"][:, None].expand(-1, 3, -1, -1)
        assert (batch["partner"][padding] == GREY[0]).all()
        has_one = batch["partner_class"] >= 0
        assert torch.equal(has_one, batch["image_labels"].sum(dim=1) > 1)
        assert torch.equal(has_one, batch["partner_valid"].flatten(1).any(dim=1))


def test_the_samples_own_views_are_those_of_the_plain_stream():
    views, plain = stream(seed=3), stream(seed=3, kind=TrainingViews)
    for position in range(24):
        ours, theirs = views[position], plain[position]
        assert set(ours) - set(theirs) == {"partner", "partner_valid", "partner_class"}
        assert ours["index"] == theirs["index"]
        for key in ("weak", "strong", "valid", "image_labels"):
            assert torch.equal(ours[key], theirs[key])


def test_the_partners_view_follows_the_augmentation():
    fixed = dict(scale_min=1.0, scale_max=1.0, flip=0.0, blur=0.0, crop_size=32)
    half = dict(scale_min=0.5, scale_max=0.5)
    # The whole image fits into the crop.
    for views, area in ((stream(**fixed), 20 * 24), (stream(**fixed | half), 10 * 12)):
        samples = [views[position] for position in range(16)]
        areas = {s["partner_valid"].sum().item() for s in samples if s["partner_class"] >= 0}
        assert areas == {area}


def flat(batches):
    keys = ("index", "weak", "partner", "partner_valid", "partner_class")
    return {key: torch.cat([batch[key] for batch in batches]) for key in keys}


@pytest.mark.parametrize("batch_size, workers, start", [(2, 0, 0), (6, 0, 0), (6, 2, 0), (4, 0, 3)])
def test_samples_depend_on_seed_and_position_alone(batch_size, workers, start):
    views = stream(seed=5)
    reference = [views[position] for position in range(24)]
    batches = list(training_loader(
        Plain(ROWS), batch_size=batch_size, seed=5, iterations=24 // batch_size,
        start_iteration=start, workers=workers, stream=PartnerViews, **AUGMENT
    ))
    found = flat(batches)
    for place, sample in enumerate(reference[start * batch_size :]):
        for key, values in found.items():
            assert torch.equal(values[place], torch.as_tensor(sample[key])), key


def test_seeds_differ_in_the_partners_of_an_image():
    first, other = stream(seed=0), stream(seed=1)
    pairs = [(first[position], other[position]) for position in range(120)]
    same_partner = [
        torch.equal(a["partner"], b["partner"]) for a, b in pairs
        if a["index"] == b["index"] in MULTI
    ]
    assert len(same_partner) > 3 and not any(same_partner)


def test_the_draws_of_a_partner_are_not_those_of_the_sample_or_of_the_order():
    assert partners._PARTNER not in (order._ORDER, loader._SAMPLE)


def test_the_strong_view_of_a_partner_is_not_made(monkeypatch):
    made = []
    original = partners.training_views
    monkeypatch.setattr(partners, "training_views", lambda image, rng, **options: (
        made.append(options["strong"]) or original(image, rng, **options)))
    views = stream()
    several = sum(views[position]["partner_class"] >= 0 for position in range(16))
    assert made == [False] * several and several > 0 and views.augment["strong"]


# What the user is told


def told(capsys, rows):
    stream(rows)
    return capsys.readouterr().err


def test_the_user_is_told_once_what_is_never_pasted(capsys):
    views = stream()
    message = capsys.readouterr().err
    assert message.count("note: ") == message.count("\n") == 1
    assert message.rstrip().endswith("never pasted: d")
    views[0]
    assert capsys.readouterr().err == ""
    assert told(capsys, [[1, 0], [0, 1], [1, 1]]) == ""


def test_classes_without_any_image_are_no_news(capsys):
    assert told(capsys, [[1, 0, 0], [0, 1, 0], [1, 1, 0]]) == ""


@pytest.mark.parametrize("rows, what", [
    ([[1, 0], [0, 1], [0, 0]], "several labels"),
    ([[1, 1], [1, 1], [0, 0]], "a single label"),
])
def test_the_user_is_told_when_nothing_is_ever_pasted(capsys, rows, what):
    message = told(capsys, rows)
    assert message.count("\n") == 1 and f"no training image has {what}" in message
    views = stream(rows)
    assert {views[position]["partner_class"] for position in range(6)} == {-1}


def test_no_labelled_image_is_a_user_error():
    with pytest.raises(UserError, match="no training image has a label"):
        stream([[0, 0], [0, 0]])
