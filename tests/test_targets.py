import math

import pytest
import torch

from cosa.targets import cam_pseudo_labels, perplexity, seg_pseudo_labels


def test_cam_pseudo_labels_by_hand():
    cam = torch.tensor([[[[0.6, 0.2], [0.5, 0.0]], [[0.7, 0.1], [0.4, 0.49]]]])
    labels, confidence = cam_pseudo_labels(cam, 0.5)
    assert labels.tolist() == [[[2, 0], [1, 0]]]  # the threshold itself is foreground
    assert labels.dtype == torch.int64
    assert torch.equal(confidence, torch.tensor([[[0.7, 0.2], [0.5, 0.49]]]))


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_an_image_without_objects_is_background(threshold):
    labels, confidence = cam_pseudo_labels(torch.zeros(2, 3, 4, 4), threshold)
    assert not labels.any() and not confidence.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_labels_and_perplexity_agree_on_the_side_of_the_threshold(dtype):
    cam = torch.rand(1, 1, 64, 64, generator=torch.manual_seed(0)).to(dtype)
    labels, confidence = cam_pseudo_labels(cam, 0.7)
    assert confidence.dtype == dtype
    above = confidence.double() >= 0.7
    assert torch.equal(labels == 1, above)
    distance = torch.where(above, (confidence.double() - 0.7) / 0.3, 1 - confidence.double() / 0.7)
    expected = -(0.8 * distance.clamp(1e-6, 1)).log()
    assert torch.allclose(perplexity(confidence, 0.7).double(), expected, atol=1e-3)


def test_perplexity_by_hand():
    # Distances 1, 1/2 and 1/4 above and 1/2 and 1 below a threshold of 0.6.
    confidence = torch.tensor([1.0, 0.8, 0.7, 0.3, 0.0], dtype=torch.float64)
    expected = [-math.log(0.8 * d) for d in (1, 0.5, 0.25, 0.5, 1)]
    assert perplexity(confidence, 0.6).tolist() == pytest.approx(expected, abs=1e-9)
    assert expected[0] == pytest.approx(0.223, abs=1e-3)


def test_perplexity_constants():
    confidence = torch.tensor([0.75], dtype=torch.float64)
    value = perplexity(confidence, 0.5, alpha=0.4, beta=2.0)
    assert value.item() == pytest.approx(math.log(0.2) ** 2)
    assert perplexity(torch.ones(1), 0.5, alpha=1.0, beta=0.5).item() == 0


@pytest.mark.parametrize("threshold", [0.0, 1e-9, 0.05, 0.5, 1 - 1e-9, 1.0])
def test_perplexity_is_finite_and_positive_everywhere(threshold):
    confidence = torch.cat([torch.linspace(-0.1, 1.1, 121), torch.tensor([threshold])])
    value = perplexity(confidence, threshold)
    assert torch.isfinite(value).all()
    assert value.min() >= -math.log(0.8) - 1e-6
    assert value[-1] == value.max() and value[-1] > 13


def test_perplexity_falls_with_the_distance_to_the_threshold():
    value = perplexity(torch.linspace(0, 1, 101, dtype=torch.float64), 0.4)
    assert (value[:41].diff() > 0).all()
    assert (value[40:].diff() < 0).all()


@pytest.mark.parametrize(
    "arguments", [{"threshold": 1.5}, {"alpha": 0.0}, {"alpha": 1.1}, {"beta": 0.0}]
)
def test_perplexity_refuses_constants_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        perplexity(torch.rand(3), **{"threshold": 0.5, **arguments})


def test_seg_pseudo_labels_by_hand():
    seg = torch.tensor([1.0, 2.0, 5.0, 1.5], dtype=torch.float64).reshape(1, 4, 1, 1)
    result = seg_pseudo_labels(seg, torch.tensor([[1.0, 0.0, 1.0]]), temperature=0.5).flatten()
    weights = [math.exp(2), math.exp(4), 0, math.exp(3)]
    assert result.tolist() == pytest.approx([w / sum(weights) for w in weights])
    assert result[2] == 0


def test_seg_pseudo_labels_sum_to_one_and_stay_finite_for_large_logits():
    seg = 1000 * torch.randn(2, 4, 5, 5, generator=torch.manual_seed(0))
    result = seg_pseudo_labels(seg, torch.tensor([[0, 0, 0], [1, 1, 1]]))
    assert torch.allclose(result.sum(dim=1), torch.ones(2, 5, 5))
    # Without any object the background takes it all.
    assert torch.equal(result[0, 0], torch.ones(5, 5)) and not result[0, 1:].any()


def test_seg_pseudo_labels_are_float32_under_autocast():
    seg = torch.randn(1, 3, 4, 4, generator=torch.manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = seg_pseudo_labels(seg, torch.ones(1, 2), temperature=1.0)
    assert result.dtype == torch.float32
    assert torch.equal(result, (seg.float()).softmax(dim=1))


def test_seg_pseudo_labels_report_mistakes():
    with pytest.raises(ValueError, match="image_labels"):
        seg_pseudo_labels(torch.rand(2, 4, 3, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="temperature"):
        seg_pseudo_labels(torch.rand(2, 4, 3, 3), torch.ones(2, 3), temperature=0.0)


def test_targets_carry_no_gradient():
    maps = torch.rand(1, 3, 4, 4, requires_grad=True)
    labels, confidence = cam_pseudo_labels(maps, 0.5)
    results = [confidence, perplexity(maps, 0.5), seg_pseudo_labels(maps, torch.ones(1, 2))]
    assert not any(result.requires_grad for result in results)
