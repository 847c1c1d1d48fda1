"""Images that hold none of the classes: background everywhere, and nothing breaks."""

from functools import partial

import pytest
import torch

from cosa.network import NetworkOutput
from cosa.regularizers.domain_adaptation import confident_labels
from cosa.targets import CamTargets
from cosa.terms import Seen
from tests.helpers.cotraining import CLASSES, ON, TERMS, build, make_batch

BF16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


def with_negatives(size, *negatives):
    """A batch whose images of these numbers hold no class."""
    batch = make_batch(size)
    batch["image_labels"][list(negatives)] = 0
    return batch


def labelled(cotraining, batch):
    """The targets of a batch."""
    assigned = cotraining.assign(batch, {"cam", "aux_cam", "seg"})
    return cotraining._label(batch, assigned.maps)


def test_pseudo_labels_are_background_everywhere_and_certain():
    """Eq. (4) at a confidence of 0: the largest distance to the threshold, P = -log(0.8)."""
    targets = labelled(build(), with_negatives(3, 1)).targets
    for key in ("cam", "aux_cam"):
        target = targets[key]
        assert not target.labels[1].any() and not target.cam[1].any()
        assert torch.allclose(target.perplexity[1], torch.tensor(0.2231436), atol=1e-6)
        assert target.labels[0].any() and (target.perplexity[0] >= 0.2231).all()
        assert not target.all_classes((6, 6))[1].any()
    probabilities = targets["seg"].all_classes((6, 6))
    assert torch.equal(probabilities[1, 0], torch.ones(6, 6)) and not probabilities[1, 1:].any()


def test_a_batch_without_any_class_has_targets():
    targets = labelled(build(), with_negatives(2, 0, 1)).targets
    assert not targets["cam"].labels.any() and targets["cam"].cam.shape[1] == 1
    assert (targets["seg"].all_classes((6, 6))[:, 0] == 1).all()


def maps_with_gradient(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = len(batch["weak"])

    def draw(*shape):
        return torch.randn(size, *shape, generator=generator).requires_grad_()

    return NetworkOutput(
        logits=draw(CLASSES), aux_logits=draw(CLASSES), cam=draw(CLASSES, 6, 6),
        aux_cam=draw(CLASSES, 6, 6), seg=draw(CLASSES + 1, 6, 6), features=draw(32, 6, 6),
    )


def test_gradients_of_an_image_without_classes_lead_to_none():
    """Down for every class, up for the background, and nothing by contrast."""
    cotraining, batch = build(), with_negatives(3, 1)
    part, output = labelled(cotraining, batch), maps_with_gradient(batch)
    seen = Seen(**vars(part), output=output, segmented_by=("cam", "aux_cam"))
    gradients = {}
    leaves = {key: value for key, value in vars(output).items() if value is not None}
    for name, term in cotraining.terms.items():
        found = torch.autograd.grad(term.sum(seen).mean(), list(leaves.values()),
                                    allow_unused=True, retain_graph=True)
        gradients[name] = {key: gradient[1] for key, gradient in zip(leaves, found, strict=True)
                           if gradient is not None}
    probability = torch.sigmoid(output.logits[1]).detach()
    assert torch.allclose(gradients["cls"]["logits"], probability / CLASSES / 3, atol=1e-7)
    assert torch.allclose(
        gradients["s2c"]["cam"], torch.sigmoid(output.cam[1]).detach() / CLASSES / (3 * 36),
        atol=1e-7)
    for name in ("c2s", "c2s_aux"):
        assert (gradients[name]["seg"][0] <= 0).all() and (gradients[name]["seg"][1:] >= 0).all()
        assert gradients[name]["seg"].abs().sum() > 0
    assert not gradients["csc"]["cam"].any()


def test_they_do_not_move_the_threshold():
    """Also where confidences of 0 take part in its fit."""
    options = {"threshold": {"cell": 8, "smoothing": 0.0, "min_confidence": -1.0}}
    alone, among = build(**options), build(**options)
    batch = make_batch(4)
    alone.step({key: value[[0, 2]] for key, value in batch.items()}, 0)
    batch["image_labels"][[1, 3]] = 0
    among.step(batch, 0)
    for mine, theirs in zip(alone.labeller.state_dict().values(),
                            among.labeller.state_dict().values(), strict=True):
        assert torch.equal(mine["histograms"], theirs["histograms"])
        assert mine["value"] == theirs["value"]
    assert mine["histograms"].sum() > 0
    before = among.xi()
    among.step(with_negatives(2, 0, 1), 1)
    assert among.xi() == before


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("autocast", [None, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("negatives", [(0, 1, 2, 3), (0, 1), (2,)])
def test_all_terms_are_finite(negatives, autocast, accumulate):
    """With all regularizers; in two parts, the first or the second may hold no class at all."""
    cotraining = build(autocast, regularizers=ON, train={"accumulate": accumulate})
    loss, terms = cotraining.step(with_negatives(4, *negatives), 0)
    assert set(TERMS) < set(terms) and all(torch.isfinite(term) for term in terms.values()), terms
    loss.backward()
    gradients = [p.grad for p in cotraining.online.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("parts", [2, 3])
def test_a_step_in_parts_is_the_step(parts):
    batch = with_negatives(5, 0, 1, 2)
    whole, split = build(), build(train={"accumulate": parts})
    for iteration in range(2):
        _, terms = whole.step(batch, iteration)
        _, others = split.step(batch, iteration)
        for name in TERMS:
            assert others[name].item() == pytest.approx(terms[name].item(), rel=1e-5), name
        assert whole.xi() == split.xi()


def test_the_order_of_the_batch_is_of_no_account():
    batch, order = with_negatives(4, 1, 2), [2, 0, 3, 1]
    _, terms = build().step(batch, 0)
    _, others = build().step({key: value[order] for key, value in batch.items()}, 0)
    for name in TERMS:
        assert others[name].item() == pytest.approx(terms[name].item(), rel=1e-5), name


def test_an_image_without_classes_is_confident_background_for_plda():
    """Its supervision is background at every position: the CAM goes down for all classes."""
    nothing = torch.zeros(1, CLASSES, 6, 6)
    assert not confident_labels(nothing, nothing, torch.zeros(1, CLASSES)).any()


def test_one_class_and_images_without_it():
    """Where the network has a single class, all terms are there and finite."""
    cotraining = build(classes=1, regularizers=ON)
    batch = make_batch(4)
    batch["image_labels"] = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    loss, terms = cotraining.step(batch, 0)
    loss.backward()
    assert set(TERMS) < set(terms) and all(torch.isfinite(term) for term in terms.values())


def test_targets_of_a_view_without_classes():
    target = build().labeller.label_view(
        torch.randn(2, CLASSES, 6, 6), torch.zeros(2, CLASSES), torch.ones(2, 12, 12).bool()
    )
    assert isinstance(target, CamTargets) and not target.labels.any()
