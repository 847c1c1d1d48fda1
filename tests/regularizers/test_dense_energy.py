import pytest
import torch
import torch.nn.functional as F

from cosa.config.regularizers import DenseEnergyOptions
from cosa.lattice import Lattice, bilateral_features
from cosa.network import NetworkOutput
from cosa.regularizers.dense_energy import UNIT, DenseEnergy, dense_energy_loss
from cosa.targets import CamTargets
from tests.helpers import cotraining

SIGMAS = {"sigma_xy": 6.0, "sigma_rgb": 20.0}


def softmax(*shape, seed=0):
    scores = torch.randn(*shape, generator=torch.manual_seed(seed), dtype=torch.float64)
    return (2 * scores).softmax(dim=1)


def photographs(batch, h, w, seed=0):
    """(B, 3, h, w) in 0..255: smooth colours on both sides of an edge."""
    generator = torch.manual_seed(seed)
    coarse = torch.rand(batch, 6, 2, 2, generator=generator, dtype=torch.float64)
    smooth = F.interpolate(255 * coarse, (h, w), mode="bilinear", align_corners=True)
    edge = torch.arange(w) < w // 2
    noise = torch.randn(batch, 3, h, w, generator=generator, dtype=torch.float64)
    return (torch.where(edge, smooth[:, :3], smooth[:, 3:]) + 3 * noise).clamp(0, 255)


def mask(*shape, share=0.5, seed=0):
    return torch.rand(*shape, generator=torch.manual_seed(seed)) < share


def lattice_affinity(features):
    return Lattice(features).filter(torch.eye(len(features), dtype=torch.float64))


def exact_affinity(features):
    return torch.exp(-torch.cdist(features, features) ** 2 / 2)


def slow_energy(probabilities, images, labelled, valid, affinity, sigma_xy, sigma_rgb):
    """The definition, pair by pair of valid pixels; also its gradient with the gate constant."""
    batch, classes, h, w = probabilities.shape
    total, gradient = 0.0, torch.zeros_like(probabilities)
    for b in range(batch):
        pixels = [(y, x) for y in range(h) for x in range(w) if valid[b, y, x]]
        features = bilateral_features(images[b].permute(1, 2, 0), sigma_xy, sigma_rgb)
        weights = affinity(features.reshape(h, w, 5)[valid[b]])
        for i, (y, x) in enumerate(pixels):
            s_i = probabilities[b, :, y, x]
            gate = 1 - s_i.max() if labelled[b, y, x] else 1.0
            for j, (v, u) in enumerate(pixels):
                s_j = probabilities[b, :, v, u]
                total += gate * weights[i, j] * (s_i @ s_j)
                gradient[b, :, y, x] += gate * weights[i, j] * s_j
                gradient[b, :, v, u] += gate * weights[i, j] * s_i
    return -UNIT / batch * total, -UNIT / batch * gradient


def value_and_gradient(probabilities, *arguments, **options):
    probabilities = probabilities.clone().requires_grad_()
    loss = dense_energy_loss(probabilities, *arguments, **options)
    loss.backward()
    return loss.detach(), probabilities.grad


def test_one_pixel_by_hand():
    # Black, at the origin: it sits on a lattice point, and the blur leads back to it once.
    affinity = (1 + 1 / 64) / (1 + 1 / 32)
    s = torch.tensor([0.25, 0.75], dtype=torch.float64).reshape(1, 2, 1, 1)
    black, labelled = torch.zeros(1, 3, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)
    loss = dense_energy_loss(s, black)
    assert loss.item() == pytest.approx(-1e-7 * affinity * (1 / 16 + 9 / 16), rel=1e-12)
    gated = dense_energy_loss(s, black, labelled)
    assert gated.item() == pytest.approx(0.25 * loss.item(), rel=1e-12)
    mixed = dense_energy_loss(s.repeat(2, 1, 1, 1), black.repeat(2, 1, 1, 1),
                              torch.tensor([True, False]).reshape(2, 1, 1))
    assert mixed.item() == pytest.approx((0.25 + 1) / 2 * loss.item(), rel=1e-12)


def test_loss_and_gradient_are_the_definition():
    s, images = softmax(2, 3, 5, 6), photographs(2, 5, 6)
    labelled, valid = mask(2, 5, 6), mask(2, 5, 6, share=0.8, seed=1)
    loss, gradient = value_and_gradient(s, images, labelled, valid, **SIGMAS)
    expected = slow_energy(s, images, labelled, valid, lattice_affinity, **SIGMAS)
    assert torch.allclose(loss / UNIT, expected[0] / UNIT)
    assert torch.allclose(gradient / UNIT, expected[1] / UNIT)
    assert loss < 0 and not gradient.movedim(1, -1)[~valid].any()


def test_loss_and_gradient_are_near_those_of_the_exact_gaussian():
    s, images = softmax(2, 3, 8, 9), photographs(2, 8, 9, seed=2)
    labelled, valid = mask(2, 8, 9), torch.ones(2, 8, 9, dtype=torch.bool)
    loss, gradient = value_and_gradient(s, images, labelled, valid, **SIGMAS)
    expected, direction = slow_energy(s, images, labelled, valid, exact_affinity, **SIGMAS)
    # The scale of the lattice's affinity differs (Lattice.filter), the direction hardly.
    assert 0.4 < (loss / expected).item() < 1
    cosine = F.cosine_similarity(gradient.flatten(), direction.flatten(), dim=0)
    assert cosine > 0.98


def test_gradcheck():
    images, valid = photographs(2, 3, 4), mask(2, 3, 4, share=0.8)

    def loss(s):
        return dense_energy_loss(s, images, valid=valid, **SIGMAS) / UNIT

    assert torch.autograd.gradcheck(loss, softmax(2, 2, 3, 4).requires_grad_())


def test_gradient_reaches_the_probabilities_only():
    s, images = softmax(1, 2, 4, 4).requires_grad_(), photographs(1, 4, 4).requires_grad_()
    dense_energy_loss(s, images, mask(1, 4, 4)).backward()
    assert s.grad.abs().min() > 0 and images.grad is None


def test_loss_falls_where_the_segmentation_follows_the_colours():
    images = torch.zeros(1, 3, 6, 8)
    images[..., 4:] = 200
    left = (torch.arange(8) < 4).float().expand(6, 8)
    across = (torch.arange(6) < 3).float()[:, None].expand(6, 8)
    follows, ignores = (
        dense_energy_loss(torch.stack([m, 1 - m])[None], images) for m in (left, across)
    )
    assert follows < ignores < 0


def test_a_confident_labelled_pixel_gives_nothing_but_still_attracts():
    s = torch.tensor([[1.0, 0.5], [0.0, 0.5]], dtype=torch.float64).reshape(1, 2, 1, 2)
    labelled = torch.tensor([[[True, False]]])
    loss, gradient = value_and_gradient(s, torch.zeros(1, 3, 1, 2), labelled)
    affinity = lattice_affinity(bilateral_features(torch.zeros(1, 2, 3), 50.0, 15.0).double())
    expected = affinity[1, 0] * 0.5 + affinity[1, 1] * 0.5
    assert loss.item() == pytest.approx(-UNIT * expected.item(), rel=1e-12)
    assert gradient[0, 0, 0, 1] < gradient[0, 1, 0, 1]  # towards the class of its neighbour


# Padding and degenerate batches


@pytest.mark.parametrize("labels", [False, True])
def test_padding_never_counts(labels):
    # Dark, so that padding taken for black would share lattice points with the image.
    s, images = softmax(2, 3, 6, 8), photographs(2, 6, 8) / 5
    labelled = mask(2, 6, 8) if labels else None
    valid = torch.ones(2, 6, 8, dtype=torch.bool)
    valid[..., 6:] = False
    within = labelled[..., :6] if labels else None
    expected = value_and_gradient(s[..., :6], images[..., :6], within, **SIGMAS)
    for filling in (0.0, 255.0, float("nan")):
        s[..., 6:], images[..., 6:] = filling, filling
        loss, gradient = value_and_gradient(s, images, labelled, valid, **SIGMAS)
        assert torch.allclose(loss / UNIT, expected[0] / UNIT, rtol=1e-12)
        assert torch.allclose(gradient[..., :6] / UNIT, expected[1] / UNIT)
        assert not gradient[..., 6:].any()


def test_an_image_of_padding_among_others():
    s, images = softmax(2, 3, 4, 4), photographs(2, 4, 4)
    valid = torch.tensor([True, False])[:, None, None].expand(2, 4, 4)
    loss, gradient = value_and_gradient(s, images, valid=valid)
    alone = dense_energy_loss(s[:1], images[:1])
    assert torch.allclose(loss / UNIT, alone / UNIT / 2)
    assert gradient[0].any() and not gradient[1].any()


def test_a_batch_of_padding_is_zero():
    valid = torch.zeros(2, 4, 4, dtype=torch.bool)
    s, images = torch.full((2, 3, 4, 4), float("nan")), photographs(2, 4, 4)
    loss, gradient = value_and_gradient(s, images, mask(2, 4, 4), valid)
    assert loss == 0 and torch.equal(gradient, torch.zeros_like(gradient))


def test_images_do_not_see_each_other_and_their_order_does_not_matter():
    s, images, labelled = softmax(3, 2, 5, 5), photographs(3, 5, 5), mask(3, 5, 5)
    images[2] = images[0]
    loss = dense_energy_loss(s, images, labelled)
    alone = [dense_energy_loss(s[i : i + 1], images[i : i + 1], labelled[i : i + 1])
             for i in range(3)]
    assert torch.allclose(loss / UNIT, sum(alone) / 3 / UNIT)
    order = torch.tensor([2, 0, 1])
    shuffled = dense_energy_loss(s[order], images[order], labelled[order])
    assert torch.allclose(loss / UNIT, shuffled / UNIT)


# Types and shapes


def test_half_precision_is_widened():
    s, images = softmax(2, 3, 6, 6).bfloat16(), photographs(2, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dense_energy_loss(s, images.float(), mask(2, 6, 6))
    assert loss.dtype == torch.float32
    wide = dense_energy_loss(s.double(), images, mask(2, 6, 6))
    assert wide.dtype == torch.float64
    assert loss.item() == pytest.approx(wide.item(), rel=1e-4)


@pytest.mark.parametrize("name, wrong", [
    ("images", torch.zeros(2, 3, 4, 5)),
    ("labelled", torch.zeros(2, 4, 5, dtype=torch.bool)),
    ("valid", torch.zeros(1, 4, 4, dtype=torch.bool)),
])
def test_shapes_that_do_not_fit_are_reported(name, wrong):
    arguments = {"images": photographs(2, 4, 4)} | {name: wrong}
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        dense_energy_loss(softmax(2, 3, 4, 4), **arguments)


# In the training step


def averaged(targets, grid):
    """Perplexity stands in for the CAM; averaged as the CAM would be."""
    doubt = F.interpolate(targets.perplexity[:, None], grid, mode="area")[:, 0]
    return CamTargets(targets.cam, targets.labels, doubt, targets.threshold)


def context_of(seg, weak, valid, doubt):
    targets = CamTargets(torch.zeros(0), torch.zeros(0), doubt, 0.5)
    output = NetworkOutput(None, None, None, None, seg, None)
    return cotraining.context_of(
        {"weak": weak, "valid": valid}, output, {"cam": targets}, relabel=averaged
    )


def step(scale=0.5, valid=None):
    seg = torch.randn(2, 3, 4, 4, generator=torch.manual_seed(0)).requires_grad_()
    weak = torch.randn(2, 3, 16, 16, generator=torch.manual_seed(1))
    valid = torch.ones(2, 16, 16, dtype=torch.bool) if valid is None else valid
    doubt = 2 * torch.rand(2, 16, 16, generator=torch.manual_seed(2))
    regularizer = cotraining.InMeans(
        DenseEnergy(DenseEnergyOptions(weight=0.05, scale=scale), 8, 2)
    )
    context = context_of(seg, weak, valid, doubt)
    assert regularizer.weights() == {"dense_energy": 0.05}
    assert regularizer.needs == {"cam"}
    return regularizer(context)["dense_energy"], context


@pytest.mark.parametrize("scale, side", [(0.5, 8), (1.0, 16)])
def test_term_is_the_loss_on_the_reduced_step(scale, side):
    loss, context = step(scale)
    seg = F.interpolate(context.output.seg, (side, side), mode="bilinear").softmax(dim=1)
    images = 255 * F.interpolate(context.batch["weak"], (side, side), mode="area")
    doubt = F.interpolate(context.targets["cam"].perplexity[:, None], (side, side), mode="area")
    expected = dense_energy_loss(seg, images, doubt[:, 0] <= 1, None, 100 * scale, 15.0)
    assert torch.allclose(loss / UNIT, expected / UNIT)
    assert loss.dtype == torch.float32
    loss.backward()
    assert context.output.seg.grad.abs().min() > 0


def test_cells_with_padding_are_left_out_of_the_term():
    valid = torch.ones(2, 16, 16, dtype=torch.bool)
    valid[..., 11:] = False  # cells of 2: the sixth column is cut
    loss, context = step(valid=valid)
    context.batch["weak"] = context.batch["weak"].masked_fill(~valid[:, None], 7.0)
    context.targets["cam"].perplexity[~valid] = 0.5
    again = DenseEnergy(DenseEnergyOptions(weight=1.0), 8, 2)(context)["dense_energy"].mean()
    assert torch.allclose(loss / UNIT, again / UNIT)
    loss.backward()
    assert not context.output.seg.grad[..., 3:].any()


def test_a_step_of_padding_is_zero():
    loss, context = step(valid=torch.zeros(2, 16, 16, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and not context.output.seg.grad.any()
