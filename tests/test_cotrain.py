import pytest
import torch

from cosa import cotrain, losses, targets
from cosa.cam import filter_by_labels
from cosa.core.device import choose_autocast
from cosa.core.errors import NotFiniteError, UserError
from cosa.predict import multi_scale
from cosa.present import PresentClasses
from tests.helpers.cotraining import TERMS, build, make_batch, only
from tests.helpers.tiny import SIZE

LOSS_FUNCTION = {
    "cls": "classification_of_images",
    "c2s": "cam_to_seg_at_pixels", "s2c": "seg_to_cam_at_positions",
    "csc": "contrastive_separation_of_images",
}


def touched(cotraining):
    """Names of the parts of the online network that a gradient reached."""
    aux = cotraining.online.reader.aux_layer
    parts = set()
    for name, parameter in cotraining.online.named_parameters():
        if parameter.grad is None or not parameter.grad.any():
            continue
        if name.startswith("encoder.blocks."):
            late = int(name.split(".")[2]) > aux
            parts.add("late blocks" if late else "early blocks")
        elif not name.startswith("encoder."):
            parts.add(name.split(".")[0])
    return parts


# Which terms there are


def test_terms_start_stage_by_stage():
    cotraining = build(method={"cls_iterations": 3, "s2c_start": 5})
    warm_up = {"cls": 1.0, "cls_aux": 1.0}
    joint = warm_up | {"c2s": 0.1, "c2s_aux": 0.1, "csc": 0.1}
    assert cotraining.active_terms(0) == cotraining.active_terms(2) == warm_up
    assert cotraining.active_terms(3) == cotraining.active_terms(4) == joint
    assert cotraining.active_terms(5) == joint | {"s2c": 0.05}


def test_seg2cam_never_starts_within_the_warm_up():
    cotraining = build(method={"cls_iterations": 8, "s2c_start": 2})
    assert "s2c" not in cotraining.active_terms(7) and "s2c" in cotraining.active_terms(8)


@pytest.mark.parametrize("name", TERMS)
def test_weight_zero_switches_a_term_off(name):
    cotraining = build(loss={name: 0.0})
    assert set(cotraining.active_terms(0)) == set(TERMS) - {name}


@pytest.mark.parametrize(
    "off", [("cls", "cls_aux"), ("c2s", "c2s_aux"), ("s2c",), ("csc",)], ids=lambda o: o[0]
)
def test_a_term_of_weight_zero_is_not_computed(monkeypatch, off):
    def refuse(*args, **kwargs):
        raise AssertionError("a term of weight 0 was computed")

    cotraining = build(loss=dict.fromkeys(off, 0.0))
    monkeypatch.setattr(losses, LOSS_FUNCTION[off[0]], refuse)
    _, terms = cotraining.step(make_batch(), 0)
    assert set(terms) == set(TERMS) - set(off)
    with pytest.raises(AssertionError, match="weight 0 was computed"):
        build().step(make_batch(), 0)


def test_targets_of_absent_terms_are_not_made(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("made for nothing")

    monkeypatch.setattr(targets, "seg_pseudo_labels", refuse)
    _, terms = build(loss={"s2c": 0.0}).step(make_batch(), 0)
    assert set(terms) == set(TERMS) - {"s2c"}
    monkeypatch.undo()
    monkeypatch.setattr(targets, "cam_pseudo_labels", refuse)
    _, terms = build(loss=only("cls", "s2c")).step(make_batch(), 0)
    assert set(terms) == {"cls", "s2c"}
    with pytest.raises(AssertionError, match="made for nothing"):
        build().step(make_batch(), 0)


def test_the_assignment_network_rests_in_the_classification_stage(monkeypatch):
    cotraining = build(method={"cls_iterations": 2, "s2c_start": 2})

    def refuse(*args, **kwargs):
        raise AssertionError("the teacher was run")

    monkeypatch.setattr(cotraining.assignment.network, "forward", refuse)
    loss, terms = cotraining.step(make_batch(), 1)
    assert set(terms) == {"cls", "cls_aux"} and loss.requires_grad
    with pytest.raises(AssertionError, match="teacher was run"):
        cotraining.step(make_batch(), 2)


def test_no_term_at_the_first_iteration_is_a_users_mistake():
    with pytest.raises(UserError, match="loss.cls"):
        build(loss={"cls": 0.0, "cls_aux": 0.0}, method={"cls_iterations": 5, "s2c_start": 5})
    with pytest.raises(UserError, match="no loss term"):
        build(loss=only())


def test_the_loss_is_the_weighted_sum_of_its_terms():
    cotraining = build(loss={"cls": 1.5, "cls_aux": 0.5, "c2s": 0.2, "c2s_aux": 0.3, "s2c": 0.7,
                             "csc": 0.9})
    loss, terms = cotraining.step(make_batch(), 0)
    expected = (1.5 * terms["cls"] + 0.5 * terms["cls_aux"] + 0.2 * terms["c2s"]
                + 0.3 * terms["c2s_aux"] + 0.7 * terms["s2c"] + 0.9 * terms["csc"])
    assert torch.allclose(loss, expected)
    assert all(term > 0 and not term.requires_grad for term in terms.values())


def test_the_terms_are_the_losses_of_the_method(monkeypatch):
    """Swapped: each network's CAM supervises the other's segmentation and the reverse."""
    cotraining, batch = build(), make_batch()
    _, terms = cotraining.step(batch, 0)
    output = cotraining.online(batch["strong"])
    maps = multi_scale(cotraining.assignment, batch["weak"], scales=(1.0,), flip=True)
    xi, xi_aux = cotraining.xi()
    for name, cam, threshold in (("c2s", maps.cam, xi), ("c2s_aux", maps.aux_cam, xi_aux)):
        cam = filter_by_labels(cam, batch["image_labels"])
        labels, confidence = targets.cam_pseudo_labels(cam, threshold)
        doubt = targets.perplexity(confidence, threshold, 0.8, 1.0)
        assert torch.allclose(terms[name], losses.cam_to_seg(output.seg, labels, doubt)), name
    target = targets.seg_pseudo_labels(maps.seg, batch["image_labels"], 0.01)
    assert torch.allclose(terms["s2c"], losses.seg_to_cam(output.cam, target))
    assert torch.allclose(
        terms["cls"], losses.classification(output.logits, batch["image_labels"])
    )


def test_without_raw_every_pixel_weighs_the_same(monkeypatch):
    seen = []
    original = losses.pixel_weights

    def spy(labels, perplexity, valid=None):
        seen.append(perplexity)
        return original(labels, perplexity, valid)

    monkeypatch.setattr(losses, "pixel_weights", spy)
    method = {"cls_iterations": 0, "s2c_start": 0}
    build(method=method | {"raw": False}).step(make_batch(), 0)
    assert seen == [None, None]
    build(method=method).step(make_batch(), 0)
    assert all(weights.shape == (3, SIZE, SIZE) for weights in seen[2:])


# Where gradients go


@pytest.mark.parametrize(
    "name, parts",
    [
        ("cls", {"early blocks", "late blocks", "classifier"}),
        ("cls_aux", {"early blocks", "aux_classifier"}),
        ("c2s", {"early blocks", "late blocks", "decoder"}),
        ("c2s_aux", {"early blocks", "late blocks", "decoder"}),
        ("s2c", {"early blocks", "late blocks", "classifier"}),
        ("csc", {"early blocks", "late blocks", "classifier"}),
    ],
)
def test_each_term_trains_its_own_part_of_the_online_network(name, parts):
    cotraining = build(loss=only(name))
    loss, terms = cotraining.step(make_batch(), 0)
    loss.backward()
    assert set(terms) == {name}
    assert touched(cotraining) == parts


def test_no_gradient_reaches_the_assignment_network():
    cotraining = build()
    before = {key: value.clone() for key, value in cotraining.assignment.state_dict().items()}
    loss, _ = cotraining.step(make_batch(), 0)
    loss.backward()
    for name, parameter in cotraining.assignment.named_parameters():
        assert parameter.grad is None and not parameter.requires_grad, name
    for key, value in cotraining.assignment.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not cotraining.assignment.network.training


# What is never supervised


def padded(batch, garbage):
    """The left third is padding; what the weak view shows there is the caller's."""
    batch = {key: value.clone() for key, value in batch.items()}
    batch["valid"][:, :, : SIZE // 3] = False
    batch["strong"][..., : SIZE // 3] = 0
    batch["weak"][..., : SIZE // 3] = garbage
    return batch


@pytest.mark.parametrize("name", ["c2s", "c2s_aux", "s2c", "csc"])
def test_targets_on_padding_change_neither_loss_nor_gradient(name, monkeypatch):
    """The assignment network's maps on the padding are replaced by noise of any size."""
    original = cotrain.fuse

    def results(noise):
        def noisy(*args, **kwargs):
            maps = original(*args, **kwargs)
            generator = torch.Generator().manual_seed(noise)
            for tensor in filter(torch.is_tensor, vars(maps).values()):
                area = tensor[..., : SIZE // 3]
                area.copy_(9 * noise * torch.randn(area.shape, generator=generator))
            return maps

        monkeypatch.setattr(cotrain, "fuse", noisy)
        cotraining = build(loss=only(name))
        loss, _ = cotraining.step(padded(make_batch(), 0.0), 0)
        loss.backward()
        gradient = torch.cat([
            p.grad.flatten() for p in cotraining.online.parameters() if p.grad is not None
        ])
        return loss.detach(), gradient, cotraining.xi()

    (loss, gradient, xi), (other, other_gradient, other_xi) = results(1), results(2)
    assert xi == other_xi
    assert loss > 0 and torch.equal(loss, other)
    assert gradient.any() and torch.equal(gradient, other_gradient)


def test_an_image_of_padding_alone_is_not_segmented():
    batch = make_batch()
    batch["valid"][:] = False
    cotraining = build(loss=only("c2s", "c2s_aux", "s2c", "csc"))
    loss, terms = cotraining.step(batch, 0)
    loss.backward()
    assert loss == 0 and all(term == 0 for term in terms.values())
    assert touched(cotraining) == set()
    values = [threshold.value for threshold in cotraining.labeller.thresholds.values()]
    assert values == [0.5, 0.5], "padding does not move the thresholds"


def test_a_padded_image_leaves_the_others_their_weight():
    batch = make_batch(3)
    batch["valid"][2] = False
    two = {key: value[:2] for key, value in batch.items()}
    for name in ("c2s", "s2c"):
        loss, _ = build(loss=only(name), threshold={"dynamic": False}).step(batch, 0)
        expected, _ = build(loss=only(name), threshold={"dynamic": False}).step(two, 0)
        assert torch.allclose(loss, expected, rtol=1e-4), name


def test_the_order_of_the_batch_does_not_matter():
    batch, order = make_batch(4), torch.tensor([2, 0, 3, 1])
    loss, terms = build().step(batch, 0)
    moved, moved_terms = build().step({k: v[order] for k, v in batch.items()}, 0)
    assert torch.allclose(loss, moved, rtol=1e-4)
    for name in TERMS:
        assert torch.allclose(terms[name], moved_terms[name], rtol=1e-4), name


@pytest.mark.parametrize("case", ["no object", "one class", "all classes", "flat images"])
def test_extreme_batches_stay_finite(case):
    batch = make_batch()
    if case == "no object":
        batch["image_labels"].zero_()
    elif case == "one class":
        batch["image_labels"].zero_()[:, 1] = 1
    elif case == "all classes":
        batch["image_labels"].fill_(1)
    else:
        batch["weak"].zero_()
        batch["strong"].zero_()
    cotraining = build()
    for iteration in range(3):
        loss, terms = cotraining.step(batch, iteration)
        cotraining.online.zero_grad()
        loss.backward()
        assert torch.isfinite(loss) and set(terms) == set(TERMS)
        for name, parameter in cotraining.online.named_parameters():
            assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
        assert all(0 < xi < 1 for xi in cotraining.xi())


# Thresholds


def test_the_two_thresholds_move_and_are_separate():
    cotraining = build(threshold={"smoothing": 0.0})
    assert cotraining.xi() == (None, None), "nothing was fitted yet"
    cotraining.step(make_batch(), 0)
    xi, xi_aux = cotraining.xi()
    assert 0.5 != xi != xi_aux != 0.5
    assert xi == cotraining.labeller.thresholds["cam"].value
    assert xi_aux == cotraining.labeller.thresholds["aux_cam"].value


@pytest.mark.parametrize(
    "names, fitted", [(("cls",), (False, False)), (("c2s",), (True, False)),
                      (("csc",), (False, True)), (("s2c", "c2s_aux"), (False, True))]
)
def test_a_threshold_that_no_term_adapts_is_none(names, fitted):
    cotraining = build(loss=only(*names))
    cotraining.step(make_batch(), 0)
    assert tuple(xi is not None for xi in cotraining.xi()) == fitted


def test_only_the_maps_that_terms_need_are_fused(monkeypatch):
    asked = []
    original = cotrain.passes
    monkeypatch.setattr(cotrain, "passes", lambda *args: (
        asked.append(set(args[-1])) or original(*args)))
    for name in ("c2s", "c2s_aux", "csc", "s2c"):
        build(loss=only(name)).step(make_batch(), 0)
    build().step(make_batch(), 0)
    assert asked == [{"cam"}, {"aux_cam"}, {"aux_cam"}, {"seg"}, {"cam", "aux_cam", "seg"}]


def test_cams_span_the_valid_area_whatever_fires_on_the_padding(monkeypatch):
    seen = []
    original = targets.cam_pseudo_labels
    monkeypatch.setattr(
        targets, "cam_pseudo_labels", lambda cam, xi: seen.append(cam) or original(cam, xi)
    )
    batch = padded(make_batch(), 0.0)
    present = PresentClasses.of(batch["image_labels"])
    maps = multi_scale(
        build().assignment, batch["weak"], (1.0,), True, present=present
    )
    maps.cam = 0.2 + 0.3 * maps.cam
    maps.cam[..., : SIZE // 3] = 50.0
    monkeypatch.setattr(cotrain, "fuse", lambda *args, **options: maps)
    build(loss=only("c2s")).step(batch, 0)
    (cam,) = seen
    assert (cam[..., : SIZE // 3] == 0).all()
    content = cam[..., SIZE // 3 :].flatten(0, 1).flatten(1)
    assert torch.allclose(content.amax(1), torch.ones(6))
    assert torch.allclose(content.amin(1), torch.zeros(6))


@pytest.mark.parametrize("dynamic", [True, False])
def test_diverged_weights_never_pass_for_a_loss(dynamic):
    cotraining = build(threshold={"dynamic": dynamic})
    with torch.no_grad():
        cotraining.assignment.network.classifier.weight.fill_(float("nan"))
    try:
        loss, _ = cotraining.step(make_batch(), 0)
    except NotFiniteError:
        assert dynamic
    else:
        assert not dynamic and not torch.isfinite(loss)


def test_a_fixed_threshold_is_used_and_stays(monkeypatch):
    used = []
    original = targets.cam_pseudo_labels
    monkeypatch.setattr(
        targets, "cam_pseudo_labels", lambda cam, xi: used.append(xi) or original(cam, xi)
    )
    cotraining = build(threshold={"dynamic": False, "fixed": 0.3})
    cotraining.step(make_batch(), 0)
    assert cotraining.xi() == (0.3, 0.3)
    assert used and set(used) == {0.3}


def test_confidences_are_averaged_over_cells_without_padding(monkeypatch):
    cotraining = build()
    seen = []
    threshold = cotraining.labeller.thresholds["cam"]
    original = threshold.count
    monkeypatch.setattr(threshold, "count", lambda confidence, counted: (
        seen.append(confidence[counted]) or original(confidence, counted)))
    batch = make_batch(2)
    batch["valid"][0, :, :9] = False  # one column of cells wholly, one in part
    cotraining.step(batch, 0)
    cells = (SIZE // 8) ** 2
    assert seen[0].shape == (2 * cells - 2 * (SIZE // 8),)
    assert seen[0].min() >= 0 and seen[0].max() <= 1


# The assignment network, checkpoints, precision


def distance(cotraining):
    pairs = zip(cotraining.online.parameters(), cotraining.assignment.parameters(), strict=True)
    return sum((a - b).abs().sum().item() for a, b in pairs)


def disturb(cotraining):
    with torch.no_grad():
        for parameter in cotraining.online.parameters():
            parameter.add_(1.0)


def test_the_update_moves_the_assignment_network():
    cotraining = build(teacher={"momentum": 0.75})
    disturb(cotraining)
    before = distance(cotraining)
    cotraining.update_assignment(0)
    assert distance(cotraining) == pytest.approx(0.75 * before, rel=1e-4)


@pytest.mark.parametrize(
    "iteration, momentum", [(0, 0.1), (5, 6 / 15), (80, 81 / 90), (10**6, 0.95)]
)
def test_the_momentum_ramps_up(iteration, momentum):
    cotraining = build(teacher={"momentum": 0.95, "momentum_ramp": True})
    disturb(cotraining)
    before = distance(cotraining)
    cotraining.update_assignment(iteration)
    assert distance(cotraining) == pytest.approx(momentum * before, rel=1e-3)


def test_state_round_trip_continues_exactly():
    first, second = build(), build(seed=9)
    disturb(first)
    for iteration in range(3):
        first.step(make_batch(seed=iteration), iteration)
    second.load_state_dict(first.state_dict())
    assert second.xi() == first.xi() != (None, None)
    batch = make_batch(seed=7)
    (loss, terms), (other, other_terms) = first.step(batch, 3), second.step(batch, 3)
    assert torch.equal(loss, other) and second.xi() == first.xi()
    assert all(torch.equal(terms[name], other_terms[name]) for name in TERMS)


def test_bf16_is_finite_and_close():
    batch = make_batch()
    loss, terms = build().step(batch, 0)
    cotraining = build(choose_autocast(torch.device("cpu"), "bf16"))
    rough, rough_terms = cotraining.step(batch, 0)
    rough.backward()
    assert rough.dtype is torch.float32 and torch.isfinite(rough)
    assert loss != rough, "it was in another precision"
    assert torch.allclose(loss, rough, rtol=0.1)
    for name in TERMS:
        assert torch.allclose(terms[name], rough_terms[name], rtol=0.3, atol=0.02), name
    assert all(torch.isfinite(p.grad).all() for p in cotraining.online.parameters()
               if p.grad is not None)
