"""The benchmark of certainty: its measures on maps made by hand, and the command on small files."""

import numpy as np
import pytest
import torch

from cosa.benchmark import stamp
from cosa.benchmark.campaigns import review, review_measures
from cosa.benchmark.campaigns.review_measures import CHOSEN, MEASURES, MIRRORED, VIEWS, Seen
from cosa.benchmark.campaigns.review_scores import Scores, image_iou
from cosa.benchmark.stamp import Revision
from cosa.core import IGNORE
from cosa.core.errors import UserError
from cosa.data.scenes.dataset import ScenesDataset, export
from tests.helpers.inference import write_weights


def seen(seg, cam=None, presence=(0.9, 0.2), views=None):
    seg = torch.tensor(seg).log()
    cam = torch.zeros(2, *seg.shape[1:]) if cam is None else torch.tensor(cam)
    return Seen(seg, cam, torch.tensor(presence), views or dict.fromkeys(VIEWS, seg), 0.5)


def test_measures_by_hand():
    # Three positions: background, background, the first class.
    maps = seen([[[0.8, 0.6, 0.3]], [[0.1, 0.3, 0.6]], [[0.1, 0.1, 0.1]]],
                [[[0.1, 0.7, 0.9]], [[0.0, 0.0, 0.0]]])
    found = {row: measure(maps) for row, measure in MEASURES.items()}
    assert found["probability of the mask, mean over pixels"] == pytest.approx(2 / 3)
    assert found["the same, mean over classes"] == pytest.approx((0.7 + 0.6) / 2)
    assert found["margin"] == pytest.approx((0.7 + 0.3 + 0.3) / 3)
    nats = [-sum(p * np.log(p) for p in column) for column in
            ((0.8, 0.1, 0.1), (0.6, 0.3, 0.1), (0.3, 0.6, 0.1))]
    assert found["entropy"] == pytest.approx(-np.mean(nats))
    assert found["entropy, mean over classes"] == pytest.approx(-(sum(nats[:2]) / 2 + nats[2]) / 2)
    assert found["perplexity: exp(entropy)"] == pytest.approx(-np.mean(np.exp(nats)))
    eq4 = -np.mean([-np.log(0.8 * d) for d in (0.4 / 0.5, 0.2 / 0.5, 0.4 / 0.5)])
    assert found["perplexity of Eq. (4)"] == pytest.approx(eq4, rel=1e-5)
    assert found["class scores: distance from 1/2"] == pytest.approx(0.35)
    assert found["class scores against classes of the mask"] == pytest.approx(-0.3)
    assert found["classes of the mask, few to many"] == -2
    assert found["CAM against mask: pixels"] == pytest.approx(2 / 3)
    assert found["CAM against mask: IoU"] == pytest.approx(0.5)
    # What other views say is the same here.
    assert found["flip and scales: IoU of the masks"] == 1
    assert found["scales: divergence"] == pytest.approx(0, abs=1e-6)
    ious = 1.4 / (2 + 0.3), 0.6 / (1 + 0.4)
    plain = review_measures.promised(None, 1.0)(maps)
    assert plain == pytest.approx(sum(ious) / 2)
    both = review_measures.promised(review_measures._both, 1.0)(maps)
    assert both == found["the bold one at temperature 1"]
    assert both == pytest.approx(sum(ious) / (2 + 1 - 0.9 * 0.8), rel=1e-6)


def test_views_that_differ_are_told():
    one = torch.tensor([[[0.9, 0.9]], [[0.1, 0.1]]])
    other = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]])
    views = dict.fromkeys(VIEWS, one.log()) | {MIRRORED: other.log()}
    maps = seen(one.tolist(), torch.zeros(1, 1, 2).tolist(), (0.5,), views)
    assert MEASURES["flip: IoU of the masks"](maps) == pytest.approx((0.5 + 0) / 2)
    assert MEASURES["scales: IoU of the masks"](maps) == 1
    mean, half = -np.log(0.5), -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    assert MEASURES["flip: divergence"](maps) == pytest.approx(-(mean - half) / 2, rel=1e-5)
    assert review_measures.passes("flip: divergence") == 2
    assert [review_measures.passes(row) for row in (CHOSEN, "scales: divergence")] == [1, 3]


def test_the_iou_of_an_image_is_of_the_classes_that_occur():
    truth = np.array([[0, 0, 1, IGNORE]], np.uint8)
    assert image_iou(np.array([[0, 2, 1, 3]], np.uint8), truth) == pytest.approx((0.5 + 1 + 0) / 3)
    assert image_iou(truth, truth) == 1
    assert np.isnan(image_iou(truth, np.full_like(truth, IGNORE)))


def test_scores():
    found = Scores([0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1],
                   {"up": [1, 2, 3, 4, 9], "down": [4, 3, 2, 1, 0], "flat": [1] * 5})
    assert found.correlation("up") == pytest.approx(1)
    assert found.correlation("down") == pytest.approx(-1)
    assert found.correlation("up", refined=True) == pytest.approx(-1)
    assert np.isnan(found.correlation("flat"))
    assert found.looked_at("up") == pytest.approx((0.1, 0.3, 0.1))
    assert found.looked_at("down") == pytest.approx((0.5, 0.3, 0.1))


def test_the_command_fills_its_tables(tmp_path, monkeypatch, capsys):
    export(ScenesDataset("train", 0, 2, 48), tmp_path / "own")
    export(ScenesDataset("val", 0, 6, 48), tmp_path / "own" / "val")
    classes = (tmp_path / "own/classes.txt").read_text().split("\n")
    classes = tuple(name for name in classes if name)
    weights = [write_weights(tmp_path / name / "last.pth", classes) for name in ("a", "b")]
    monkeypatch.setattr(stamp, "revision", lambda report: Revision("0123456789abcdef", ""))
    report = tmp_path / "review.md"
    report.write_text("# What to look at first\n\nBy hand.\n")
    command = [tmp_path / "own", "--crf", "--report", report, "--weights", *weights]
    assert review.main([*map(str, command)]) == 0
    text = report.read_text()
    assert text.startswith("# What to look at first\n\nBy hand.\n\n<!-- review:start -->\n")
    assert "| measure | passes | for choices | others | a | b | others with CRF |" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(MEASURES) + 1 + 2
    assert sum(row.startswith(f"| **{CHOSEN}** | 1 | **") for row in rows) == 1
    assert "3 images for choices, 3 others" in text and "Best on the images for choices: " in text
    assert "A pass of b over an image takes" in text and CHOSEN in capsys.readouterr().out

    assert review.names_of(["a/last.pth", "w/b.safetensors"]) == ["a", "b"]
    assert review.names_of(["x/a/last.pth", "y/a/best.pth"]) == ["x/a/last.pth", "y/a/best.pth"]
    with pytest.raises(UserError, match="other classes than the images"):
        review.main([str(tmp_path / "own"), "--weights", str(write_weights(tmp_path / "c.pth"))])
    for path in (tmp_path / "own/val/masks").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="mask"):
        review.main([*map(str, command)])
