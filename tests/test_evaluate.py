"""Evaluation against values that follow from the pictures, with a network that reads colours."""

import json
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from cosa import scores as scores_module
from cosa.cam import resize
from cosa.config import MethodConfig
from cosa.core.errors import UserError
from cosa.data.base import FileDataset, SegmentationDataset
from cosa.data.images import network_input
from cosa.data.masks import MaskFiles
from cosa.evaluate import EvaluationStopped, evaluate
from cosa.metrics import SegmentationMetrics
from cosa.network import CoSANetwork, NetworkOutput
from cosa.pictures import panels
from cosa.pictures.palette import voc_palette
from cosa.predict import Prediction, multi_scale
from cosa.scores import CAM_THRESHOLDS, PixelScores, format_table
from cosa.training.evaluation import panel_writer


class ColorNetwork(nn.Module):
    """Sees class k wherever channel k shines; (1, 1, 1) minus the colour is background."""

    stride = 4

    def __init__(self):
        super().__init__()
        self.forwards = 0

    def forward(self, images):
        self.forwards += 1
        assert not self.training and not torch.is_grad_enabled()
        rgb = F.avg_pool2d(images, self.stride)
        logits = rgb.amax(dim=(-2, -1)) - 0.5
        background = 1 - rgb.sum(dim=1, keepdim=True)
        seg = torch.cat([background, rgb], dim=1)
        return NetworkOutput(logits, logits, rgb, rgb.flip(-1), seg, rgb)


class Doubtful(ColorNetwork):
    """Says of red and blue a probability of 0.88, of green 0.27, of what it does not see 0.12."""

    def forward(self, images):
        output = super().forward(images)
        output.logits = (output.logits + 0.5) * torch.tensor([4.0, 1.0, 4.0]) - 2
        return output


class Stripes(SegmentationDataset):
    """32 x 32 pictures of vertical stripes, one class per stripe, in red, green and blue."""

    def __init__(self, painted, truth, size=32):
        self.classes = ("red", "green", "blue")
        self.palette = voc_palette(4)
        self.painted, self.truth = ([self._widen(row, size) for row in x] for x in (painted, truth))
        self.names = [f"folder/{k}" for k in range(len(truth))]
        self.labels = np.array([[c in row for c in (1, 2, 3)] for row in truth], np.uint8)
        self.has_masks = True

    @staticmethod
    def _widen(row, size):
        return np.tile(np.repeat(np.array(row, np.uint8), size // len(row)), (size, 1))

    def image(self, index):
        colors = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)
        return Image.fromarray(colors[self.painted[index]])

    def mask(self, index):
        return self.truth[index]


PAINTED = [[0, 1, 1, 0], [0, 2, 2, 0], [3, 3, 0, 0], [1, 1, 2, 2], [0, 0, 0, 1]]
# The green of the fourth picture and the red of the last one are not there in truth
TRUTH = [[0, 1, 1, 0], [0, 2, 2, 0], [3, 3, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
OPTIONS = {"image_size": 32, "scales": (1.0,), "flip": False, "progress": False}


@pytest.fixture
def dataset():
    return Stripes(PAINTED, TRUTH)


def run(dataset, network=None, **options):
    return evaluate(network or ColorNetwork(), dataset, **OPTIONS | options)


def draw(dataset, folder, count, thresholds=(0.5, 0.5), **method):
    """The scores of an evaluation that draws so many panels."""
    writer = panel_writer(folder, dataset, thresholds[0], MethodConfig(**method))
    return run(dataset, thresholds=thresholds, on_image=writer, shown=count)


def without_time(scores):
    return {key: value for key, value in scores.items() if key != "seconds"}


def test_perfect_network():
    scores = run(Stripes(TRUTH, TRUTH))
    for key in ("miou", "miou_label_filtered", "boundary_f", "jf", "cam_miou", "cam_best_miou"):
        assert scores[key] == 1, key
    assert scores["classification_map"] == scores["classification_f1"] == 1
    assert scores["images"] == len(TRUTH)
    assert scores["iou"] == dict.fromkeys(("background", "red", "green", "blue"), 1.0)


def test_scores_by_hand(dataset):
    scores = run(dataset, coexistence_classes=("red", "green"))
    # In quarters of an image: 12 of background, of which 2 + 1 are taken for classes
    assert scores["iou"] == pytest.approx(
        {"background": 9 / 12, "red": 4 / 5, "green": 2 / 4, "blue": 1.0}
    )
    assert scores["miou"] == pytest.approx((9 / 12 + 4 / 5 + 2 / 4 + 1) / 4)
    # Without green, red wins two more columns at its right edge in the fourth picture
    red, background = 4 * 8 / (4 * 8 + 2), (12 * 8 - 2) / (12 * 8)
    assert scores["miou_label_filtered"] == pytest.approx((background + red + 1 + 1) / 4)
    assert scores["cmiou"] == pytest.approx((4 / 5 + 2 / 4) / 2)
    assert scores["cam_miou"] == scores["cam_cmiou"] == 1, "CAMs are filtered by the labels"
    # Of three reds two are right, of two greens one, in ties
    assert scores["classification_f1"] == pytest.approx((4 / 5 + 2 / 3 + 1) / 3)
    assert scores["classification_map"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_an_image_without_labels_is_scored_label_free_and_is_background_when_filtered():
    """Half of it is taken for red: 1 of 2 background columns, and red is nowhere in truth."""
    scores = run(Stripes([[1, 0]], [[0, 0]]))
    assert scores["iou"] == {"background": 0.5, "red": None, "green": None, "blue": None}
    assert scores["miou"] == 0.5 and scores["images"] == 1
    assert scores["miou_label_filtered"] == scores["cam_miou"] == 1
    assert scores["classification_map"] is None


def test_label_free_score_does_not_see_the_labels(dataset):
    before = run(dataset)
    dataset.labels = np.roll(dataset.labels, 1, axis=0)
    after = run(dataset)
    for key in ("miou", "iou", "boundary_f", "jf"):
        assert after[key] == before[key], key
    for key in ("miou_label_filtered", "cam_miou", "classification_map"):
        assert after[key] < before[key], key


def test_order_and_batch_size_do_not_matter(dataset):
    expected = without_time(run(dataset, batch_size=1))
    backwards = Stripes(PAINTED[::-1], TRUTH[::-1])
    for data, size in ((dataset, 2), (dataset, 7), (backwards, 3)):
        assert without_time(run(data, batch_size=size)) == expected


def test_auxiliary_and_ensemble_cams(dataset):
    scores = run(Stripes([[0, 1, 1, 0], [2, 2, 0, 3]], [[0, 1, 1, 0], [2, 2, 0, 3]]))
    # The auxiliary CAM is the mirrored one: right on the first picture alone
    assert scores["cam_miou"] == 1
    assert scores["aux_cam_miou"] == pytest.approx((2 / 4 + 1 + 0 + 0) / 4)
    # Their mean makes all of the second picture green: 0.5 is reached everywhere, first wins ties
    assert scores["ensemble_cam_miou"] == pytest.approx((2 / 3 + 1 + 2 / 4 + 0) / 4)


def test_each_cam_has_its_own_threshold(dataset):
    scores = run(dataset, thresholds=(1.0, 0.5))
    assert scores["cam_miou"] < scores["cam_best_miou"] == 1
    assert scores["aux_cam_miou"] == run(dataset, thresholds=(0.5, 0.5))["aux_cam_miou"]
    assert scores["cam_best_threshold"] in CAM_THRESHOLDS
    middle = [run(dataset, thresholds=pair) for pair in ((0.2, 0.6), (0.4, 0.4), (0.2, 0.2))]
    ensemble = [scores["ensemble_cam_miou"] for scores in middle]
    assert ensemble[0] == ensemble[1] != ensemble[2]
    assert run(dataset, thresholds=(0.5, 1.0))["cam_miou"] == 1


def test_scores_at_a_threshold_that_was_never_fitted_are_none(dataset, tmp_path):
    fitted = run(dataset, coexistence_classes=("red",))
    scores = run(dataset, coexistence_classes=("red",), thresholds=(None, 0.5))
    for key in ("cam_miou", "ensemble_cam_miou", "cam_cmiou"):
        assert scores[key] is None and fitted[key] is not None, key
    assert set(scores["cam_iou"].values()) == {None}
    for key in ("aux_cam_miou", "cam_best_miou", "miou", "cmiou"):
        assert scores[key] == fitted[key], key
    assert scores.keys() == fitted.keys()
    draw(dataset, tmp_path / "none", 5, thresholds=(None, 0.5))
    draw(dataset, tmp_path / "half", 5, thresholds=(0.5, 0.5))
    drawn, expected = (
        [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.png"))]
        for name in ("none", "half")
    )
    assert len(drawn) == 5 and drawn == expected
    assert "CAM mIoU" in format_table(scores)
    assert run(dataset, thresholds=(0.5, None))["aux_cam_miou"] is None


def test_it_stops_within_a_batch(dataset):
    network, answers = ColorNetwork(), [False, False, True]
    with pytest.raises(EvaluationStopped):
        run(dataset, network, batch_size=1, should_stop=lambda: answers.pop(0))
    assert network.forwards == 2, "two batches of one pass each"
    assert run(dataset, should_stop=lambda: False)["images"] == 5


@pytest.mark.parametrize(("options", "passes"), [
    ({}, 3),  # batches
    ({"flip": True}, 6),
    ({"scales": (0.5,)}, 6),
    ({"scales": (1.0, 0.5)}, 9),
    ({"scales": (1.0, 0.5), "flip": True}, 9),  # mirrored images go through with the others
])
def test_a_pass_that_has_been_made_is_not_made_again(dataset, options, passes):
    network = ColorNetwork()
    scores = run(dataset, network, batch_size=2, **options)
    assert network.forwards == passes
    for key in ("classification_map", "classification_f1"):
        assert scores[key] == run(dataset, batch_size=2)[key], "of the image as it is"


def test_scores_of_images_without_masks_take_a_pass_of_their_own(dataset):
    dataset.truth[3] = None
    network = ColorNetwork()
    run(dataset, network, batch_size=2)
    assert network.forwards == 4, "one for each batch, and one for the second one's maps"


def test_classes_that_the_scores_deny_are_left_out_by_hand(dataset):
    every = run(dataset, Doubtful(), thresholds=(0.5, 0.5))
    assert every["iou"] == run(dataset)["iou"]
    for least in (0.2, 0.27 - 0.01):
        assert run(dataset, Doubtful(), min_class_score=least)["iou"] == every["iou"]
    scores = run(dataset, Doubtful(), min_class_score=0.5, coexistence_classes=("red", "green"))
    # In columns: the fourth picture has no green, of which red takes the two at its edge. The
    # second one keeps its green, of all classes the likeliest.
    assert scores["iou"] == pytest.approx({
        "background": (96 - 8 - 2) / 96, "red": 32 / (32 + 8 + 2), "green": 1.0, "blue": 1.0
    })
    assert scores["miou"] == pytest.approx((86 / 96 + 32 / 42 + 2) / 4)
    assert scores["cmiou"] == pytest.approx((32 / 42 + 1) / 2)
    assert scores["boundary_f"] != every["boundary_f"]
    for key in ("miou_label_filtered", "cam_miou", "aux_cam_miou", "ensemble_cam_miou",
                "cam_best_miou", "classification_map", "classification_f1"):
        assert scores[key] == every[key], key


def test_panels_show_what_is_scored(dataset, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        panels, "save_panel", lambda path, **parts: drawn.append(parts["prediction"])
    )
    for least in (0.0, 0.5):
        writer = panel_writer(tmp_path, dataset, 0.5, MethodConfig(), least)
        run(dataset, Doubtful(), on_image=writer, shown=5, min_class_score=least)
    every, some = drawn[:5], drawn[5:]
    same = [np.array_equal(a, b) for a, b in zip(every, some, strict=True)]
    assert same == [True, True, True, False, True]
    assert set(np.unique(every[3])) == {1, 2} and set(np.unique(some[3])) == {0, 1}


def test_panels_of_large_photographs_are_made_small(dataset, tmp_path, monkeypatch):
    sizes = []
    original = panels.save_panel
    monkeypatch.setattr(panels, "save_panel", lambda path, **parts: (
        sizes.append(parts["cam"].shape) or original(path, **parts)))
    large = Stripes(PAINTED[:1], TRUTH[:1], size=1000)
    draw(large, tmp_path, 1)
    assert sizes == [(3, panels.MAX_HEIGHT, panels.MAX_HEIGHT)]


def test_panels_hatch_by_the_given_perplexity(dataset, tmp_path, monkeypatch):
    hatched = []
    monkeypatch.setattr(
        panels, "save_panel", lambda path, **parts: hatched.append(parts["uncertain"][:, 0].mean())
    )
    for options in (
        {}, {"csc_epsilon": 0.0}, {"perplexity_alpha": 0.01}, {"perplexity_beta": 9.0}
    ):
        draw(dataset, tmp_path, 1, thresholds=(0.7, 0.5), **options)
    # d = 1 in the first column: perplexity -log(0.8) = 0.22, or -log(0.01) = 4.6
    assert hatched == [0.0, 1.0, 1.0, 0.0]


def test_masks_of_any_size():
    scores = run(Stripes(TRUTH, TRUTH, size=64))
    assert scores["miou"] > 0.9 and scores["cam_miou"] > 0.9


def test_without_masks_only_classification(dataset):
    dataset.has_masks = False
    network = ColorNetwork()
    scores = run(dataset, network, batch_size=5)
    assert set(scores) == {"classification_map", "classification_f1", "images", "seconds"}
    assert network.forwards == 1, "no multi-scale pass"
    assert "mIoU" not in format_table(scores)


def test_images_without_a_mask_count_for_classification_alone(dataset):
    expected = run(Stripes(PAINTED[:3], TRUTH[:3]))
    dataset.truth[3] = dataset.truth[4] = None
    scores = run(dataset)
    assert scores["miou"] == expected["miou"]
    assert scores["images"] == 5
    assert scores["classification_f1"] < 1


def test_absent_classes_are_none_and_json_works():
    scores = run(Stripes([[0, 1]], [[0, 1]]), coexistence_classes=["green"])
    assert scores["iou"]["green"] is None and scores["cmiou"] is None
    assert scores["miou"] == 1
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert "green           -      -" in format_table(scores)


def test_unknown_coexistence_class(dataset):
    with pytest.raises(UserError, match="'grene'.*'green'"):
        run(dataset, coexistence_classes=("grene",))


def test_what_the_scores_are_made_of(dataset):
    """The last but one picture: red is right, green stands on background; the last: red does."""
    found = []
    scores = run(dataset, on_parts=found.append, thresholds=(0.5, 0.5))
    (parts,) = found
    assert parts.indices == [0, 1, 2, 3, 4]
    assert parts.of_images == pytest.approx([1, 1, 1, (1 + 0 + 0) / 3, (0.75 + 0) / 2])
    assert parts.counts["images_of_class"] == [5, 2, 1, 1]
    column = 32 * 8  # pixels
    confusion = np.array(parts.counts["confusion"]) // column
    # Of truth: 2 + 2 + 2 + 2 + 4 columns of background, 2 + 2 of red, 2 of green, 2 of blue.
    assert confusion.tolist() == [[9, 1, 2, 0], [0, 4, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]]
    told = parts.counts["confidences"]
    assert told["edges"] == [0, *sorted((*CAM_THRESHOLDS, 0.5)), 1]
    assert sum(told["background"]) == 12 * column and sum(told["foreground"]) == 8 * column
    assert scores["iou"]["red"] == pytest.approx(4 / 5)
    # Of some images, by their own numbers; without masks nothing is counted.
    run(dataset, on_parts=found.append, max_images=2)
    assert found[1].indices == [1, 3] and found[1].of_images == pytest.approx([1, 1 / 3])
    dataset.has_masks = False
    run(dataset, on_parts=found.append)
    assert all(map(math.isnan, found[2].of_images)) and found[2].counts == {}


def test_max_images_are_spread(dataset):
    seen = []
    read = dataset.image
    dataset.image = lambda index: seen.append(index) or read(index)
    assert run(dataset, max_images=2)["images"] == 2
    assert sorted(seen) == [1, 3]
    assert run(dataset, max_images=99)["images"] == 5


def test_panels(dataset, tmp_path):
    draw(dataset, tmp_path, 2)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert files == ["folder/1.png", "folder/3.png"]
    dataset.has_masks = False
    draw(dataset, tmp_path / "no_masks", 9)
    panels = list((tmp_path / "no_masks").rglob("*.png"))
    assert len(panels) == 5
    assert Image.open(panels[0]).width < Image.open(tmp_path / files[0]).width


def test_shown_images_are_what_was_scored(dataset):
    shown = []
    expected = without_time(run(dataset))
    assert without_time(run(dataset, on_image=shown.append, shown=3)) == expected
    assert [image.index for image in shown] == [0, 2, 4]
    for image in shown:
        assert image.image_labels.tolist() == dataset.labels[image.index].tolist()
        np.testing.assert_array_equal(image.mask, dataset.truth[image.index])
        assert image.prediction.seg.shape == (1, 4, 32, 32)
        painted = torch.from_numpy(dataset.painted[image.index])
        assert torch.equal(image.prediction.seg[0].argmax(dim=0), painted.long())
    run(dataset, on_image=shown.append, shown=0)
    assert len(shown) == 3


def test_labels_of_equal_logits_are_the_first_ones():
    logits = torch.randint(3, (4, 9, 11), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.tensor([0, 1, 1], dtype=torch.uint8)
    assert (logits.sort(dim=0).values.diff(dim=0)[-1] == 0).any(), "there are ties"
    cam = torch.zeros(1, 3, 9, 11)
    seen = PixelScores(3, (0.5, 0.5), boundary=False).look(
        Prediction(cam, cam, logits[None], torch.zeros(1, 3)), labels, (9, 11))
    np.testing.assert_array_equal(seen.seg, logits.numpy().argmax(axis=0))
    logits[1] = -torch.inf
    np.testing.assert_array_equal(seen.filtered, logits.numpy().argmax(axis=0))
    assert seen.seg.dtype == seen.filtered.dtype == np.uint8


@pytest.mark.parametrize(("least", "left_out"), [(0.0, []), (0.1, [3]), (0.5, [1, 3])])
def test_label_free_maps_without_denied_classes(least, left_out):
    generator = torch.Generator().manual_seed(0)
    logits, cam = torch.randn(1, 4, 9, 11, generator=generator), torch.zeros(1, 3, 9, 11)
    maps = Prediction(cam, cam, logits, torch.logit(torch.tensor([[0.3, 0.8, 0.05]])))
    labels = torch.tensor([1, 0, 1])
    seen = PixelScores(3, (0.5, 0.5), False, least).look(maps, labels, (9, 11))
    expected = logits[0].clone()
    expected[left_out] = -torch.inf
    np.testing.assert_array_equal(seen.seg, expected.argmax(dim=0))
    assert set(np.unique(seen.seg)) == {0, 1, 2, 3} - set(left_out)
    filtered = logits[0].clone()
    filtered[2] = -torch.inf
    np.testing.assert_array_equal(seen.filtered, filtered.argmax(dim=0))


@pytest.mark.parametrize("training", [True, False])
def test_network_keeps_its_mode(dataset, training):
    network = ColorNetwork().train(training)
    network.part = nn.Dropout().train(training)
    run(dataset, network)
    assert network.training is network.part.training is training


def test_network_keeps_its_mode_even_after_an_error(dataset):
    network = ColorNetwork().train()
    run(dataset, network)
    assert network.training
    dataset.labels[0] = 0
    dataset.truth[0][:] = 9
    with pytest.raises(ValueError, match="target holds"):
        run(dataset, network)
    assert network.training


def test_errors_of_the_reading_threads_arrive(dataset):
    def broken(index):
        raise UserError(f"image {index} is broken")

    dataset.image = broken
    with pytest.raises(UserError, match="image 0 is broken"):
        run(dataset)


def test_network_runs_in_the_autocast_context(dataset):
    active = []

    @contextmanager
    def autocast():
        active.append(True)
        yield
        active.pop()

    class Watched(ColorNetwork):
        def forward(self, images):
            assert active
            return super().forward(images)

    assert run(dataset, Watched(), autocast=autocast)["images"] == 5
    assert not active


def test_table(dataset):
    scores = run(dataset, coexistence_classes=("red",))
    table = format_table(scores)
    assert "red          80.0  100.0" in table
    assert f"{100 * scores['miou']:.1f}" in table.split("label-free")[1].splitlines()[0]
    rows = table.splitlines()[: 1 + len(scores["iou"])]
    assert len({len(row) for row in rows}) == 1, "aligned"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_real_network(dataset, device):
    torch.manual_seed(0)
    encoder = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32}
    network = CoSANetwork(3, "vit_tiny_patch16_224", encoder, decoder_width=16).to(device)
    network.decoder.conv8.weight.data.normal_()
    options = {"image_size": 30, "scales": (1.0, 0.5), "flip": True, "device": device}
    first = run(dataset, network, **options)
    metrics = SegmentationMetrics(4, boundary=True)
    network.eval()
    for index in range(len(dataset)):
        image = network_input(dataset.image(index), 30)[None].to(device)
        seg = multi_scale(network, image, scales=(1.0, 0.5)).seg
        metrics.update(resize(seg, (32, 32))[0].argmax(0), dataset.mask(index))
    expected = metrics.compute()
    assert 0 < expected["miou"] < 1
    assert first["miou"] == pytest.approx(expected["miou"], abs=0.01)
    assert first["jf"] == pytest.approx(expected["jf"], abs=0.01)
    assert without_time(run(dataset, network, **options)) == without_time(first)


# Odd sizes


@pytest.fixture
def lines(tmp_path):
    """Images of one or two pixels across, all of the class red, and their masks."""
    names = []
    for width, height in [(3000, 1), (1, 3000), (1, 1), (2, 5000), (7, 5)]:
        names.append(f"{width}x{height}")
        Image.new("RGB", (width, height), (255, 0, 0)).save(tmp_path / f"{names[-1]}.jpg")
        Image.new("L", (width, height), 1).save(tmp_path / f"{names[-1]}.png")
    paths = [[tmp_path / f"{name}.{suffix}" for name in names] for suffix in ("jpg", "png")]
    labels = np.tile([1, 0, 0], (len(names), 1))
    classes = ("red", "green", "blue")
    masks = MaskFiles(dict(zip(names, paths[1], strict=True)), classes)
    return FileDataset(classes, names, labels, paths[0], masks)


def test_lines_of_pixels_are_scored(lines, monkeypatch):
    lines.check()
    scores = run(lines)
    assert scores["images"] == 5 and scores["iou"]["red"] == 1
    monkeypatch.setattr(scores_module, "_AT_ONCE", 1)  # row by row
    again = run(lines)
    assert all(again[key] == scores[key] for key in scores if key != "seconds")


def test_strips_of_large_masks_have_the_scores_of_the_whole(dataset, monkeypatch):
    scores = run(dataset)
    monkeypatch.setattr(scores_module, "_AT_ONCE", 10 * 5 * 32)
    again = run(dataset)
    assert all(again[key] == scores[key] for key in scores if key != "seconds")


@pytest.mark.parametrize("where", ["mask", "look"])
def test_an_image_that_is_too_large_for_the_memory_is_named(monkeypatch, where):
    dataset = Stripes([[1, 2], [2, 3]], [[1, 2], [2, 3]])
    seen = iter([False, True])

    def scarce(self, *arguments):
        if next(seen):
            raise MemoryError
        return real(self, *arguments)

    owner = Stripes if where == "mask" else PixelScores
    real = getattr(owner, where)
    monkeypatch.setattr(owner, where, scarce)
    with pytest.raises(UserError, match="memory is too small to score folder/1: shrink"):
        evaluate(ColorNetwork(), dataset, image_size=32, scales=(1.0,), flip=False)
