"""Maps spread over what is alike, by hand, and where the network does it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cosa.affinity import affinity, spread
from cosa.network import CoSANetwork

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}


def tiny(**options):
    torch.manual_seed(0)
    return CoSANetwork(3, "vit_tiny_patch16_224", TINY, aux_layer=1, decoder_width=8, **options)


def test_affinity_by_hand():
    # Three positions: two of one direction, one at 60 degrees to them.
    features = torch.tensor([[[[1.0, 2.0, 0.5]], [[0.0, 0.0, 0.75**0.5]]]])
    weights = affinity((features, 2))
    row = torch.tensor([1.0, 1.0, 0.25])
    torch.testing.assert_close(weights[0, 0], row / row.sum())
    torch.testing.assert_close(weights[0, 2], torch.tensor([0.25, 0.25, 1.0]) / 1.5)


def test_unlike_positions_take_nothing_from_each_other():
    features = torch.tensor([[[[1.0, -1.0, 0.0]], [[0.0, 0.0, 1.0]]]])
    torch.testing.assert_close(affinity((features, 4))[0], torch.eye(3))


def test_positions_are_alike_that_are_so_in_all_layers():
    # The first layer sees one direction in all three, the second the first two apart.
    one = torch.ones(1, 2, 1, 3)
    other = torch.tensor([[[[1.0, 0.0, 0.6]], [[0.0, 1.0, 0.8]]]])
    weights = affinity((one, 4), (other, 2))
    torch.testing.assert_close(weights[0, 0], torch.tensor([1.0, 0.0, 0.36]) / 1.36)
    torch.testing.assert_close(weights[0, 2], torch.tensor([0.36, 0.64, 1.0]) / 2)
    before = other.clone()
    torch.testing.assert_close(affinity((one, 4), (other, 2)), affinity((other, 2), (one, 4)))
    assert torch.equal(other, before)


def test_spread_by_hand():
    weights = torch.tensor([[[0.5, 0.5], [0.0, 1.0]]])
    maps = torch.tensor([[[[2.0, 4.0]], [[0.0, 1.0]]]])
    expected = torch.tensor([[[[3.0, 4.0]], [[0.5, 1.0]]]])
    torch.testing.assert_close(spread(maps, weights, 1), expected)
    torch.testing.assert_close(spread(maps, weights, 2)[0, :, 0, 0], torch.tensor([3.5, 0.75]))
    assert spread(maps, weights, 0) is maps


def test_spreading_keeps_constants_and_bounds():
    features = torch.randn(2, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    weights = affinity((features, 3))
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(2, 24))
    maps = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    found = spread(maps, weights, 3)
    assert found.amax() <= maps.amax() and found.amin() >= maps.amin()
    torch.testing.assert_close(spread(torch.ones(2, 1, 4, 6), weights, 5), torch.ones(2, 1, 4, 6))


@pytest.mark.parametrize("aux_power", [0.0, 2.0])
def test_only_targets_and_results_are_spread(aux_power):
    images = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    plain, spreading = tiny(aux_norm=True), tiny(
        aux_norm=True, cam_steps=2, seg_steps=1, early_layer=0, aux_affinity_power=aux_power
    )
    for mode in (True, False):
        plain.train(mode), spreading.train(mode)
        one, other = plain(images), spreading(images)
        torch.testing.assert_close(one.logits, other.logits)
        if mode:
            torch.testing.assert_close(one.cam, other.cam)
            torch.testing.assert_close(one.seg, other.seg)
    _, aux, early, _ = spreading.encode(images)  # auxiliary features are normalised
    weights = affinity((early, 4.0), (aux, 2.0)) if aux_power else affinity((early, 4.0))
    torch.testing.assert_close(other.cam, spread(F.relu(one.cam), weights, 2))
    torch.testing.assert_close(other.aux_cam, spread(F.relu(one.aux_cam), weights, 2))
    probabilities = spread(one.seg.softmax(dim=1), weights, 1)
    torch.testing.assert_close(other.seg.softmax(dim=1), probabilities, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder, options", [
    ("resnet10t", {}), ("tf_efficientnet_lite0", {}), ("vit_tiny_patch16_224", TINY)])
def test_every_kind_of_encoder_has_early_features(encoder, options):
    torch.manual_seed(0)
    network = CoSANetwork(2, encoder, options, cam_steps=1, decoder_width=8, aux_layer=-1).eval()
    output = network(torch.rand(1, 3, 64, 96))
    assert output.cam.shape == output.aux_cam.shape == (1, 2, 64 // network.stride,
                                                        96 // network.stride)
    assert (output.cam >= 0).all() and output.cam.dtype == torch.float32
