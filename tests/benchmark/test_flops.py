"""Multiply-adds by fvcore against formulas."""

import pytest
import torch

from cosa.benchmark.timings.flops import count, count_multi_scale
from cosa.network import CoSANetwork

CLASSES, PATCH, WIDTH, DEPTH, HIDDEN = 3, 8, 32, 2, 16


@pytest.fixture(scope="module")
def network():
    options = {"img_size": 32, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH,
               "num_heads": 2}
    return CoSANetwork(CLASSES, encoder="vit_tiny_patch16_224", encoder_options=options,
                       aux_layer=-1, decoder_width=HIDDEN)


def encoder_formula(patches: int) -> int:
    """Patch embedding; then per block 12 D^2 per token and two N x N x D products."""
    tokens = patches + 1
    block = 12 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH
    return patches * 3 * PATCH**2 * WIDTH + DEPTH * block


def heads_formula(patches: int) -> int:
    """Both classifiers on the map and on the pooled tokens, and three convolutions."""
    classifiers = 2 * (patches + 1) * WIDTH * CLASSES
    decoder = 9 * WIDTH * HIDDEN + 9 * HIDDEN**2 + HIDDEN * (CLASSES + 1)
    return classifiers + patches * decoder


def test_counts_equal_the_formula(network):
    found = count(network, (24, 40))
    assert found.encoder_macs == encoder_formula(15)
    assert found.macs == encoder_formula(15) + heads_formula(15)
    assert found.flops == 2 * found.macs
    assert found.parameters == sum(p.numel() for p in network.parameters())


def test_a_square_and_a_batch(network):
    one = count(network, 32)
    assert one == count(network, (32, 32))
    assert one.macs == encoder_formula(16) + heads_formula(16)
    four = count(network, 32, batch=4)
    assert (four.macs, four.encoder_macs) == (4 * one.macs, 4 * one.encoder_macs)
    assert four.parameters == one.parameters


def test_vit_base_takes_17_6_gmac():
    network = CoSANetwork(20)
    found = count(network, 224)
    assert found.encoder_macs == pytest.approx(17.6e9, rel=0.01)
    # The 12 attentions are 4% of it; exactly, with 197 tokens of 196 patches:
    block = 12 * 197 * 768**2 + 2 * 197**2 * 768
    assert found.encoder_macs == 196 * 768 * 768 + 12 * block


@pytest.mark.parametrize("encoder", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_fused_attention_counts_like_attention_spelled_out(encoder):
    options = {"img_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 2}
    network = CoSANetwork(CLASSES, encoder, {**options, "patch_size": 14}, aux_layer=-1,
                          decoder_width=8)
    attentions = [block.attn for block in network.encoder.blocks]
    counts = []
    for fused in (True, False):
        for attention in attentions:
            attention.fused_attn = fused
        counts.append(count(network, 56))
    assert counts[0] == counts[1]
    assert counts[0].encoder_macs > 2 * 2 * 17**2 * 48


def test_prediction_over_scales_and_flips(network):
    # 32 px are 4 patches; 0.5 and 1.4 of them 2 and, rounded, 6.
    found = count_multi_scale(network, 32, scales=(1.0, 0.5, 1.4), flip=True, batch=3)
    work = {patches: encoder_formula(patches) + heads_formula(patches) for patches in (16, 4, 36)}
    assert found.macs == 6 * sum(work.values())
    assert found.encoder_macs == 6 * sum(encoder_formula(patches) for patches in work)
    assert found.parameters == count(network, 32).parameters
    assert count_multi_scale(network, (30, 33)) == count(network, 32)


def test_it_is_silent_and_leaves_the_network_as_it_is(network, capfd, caplog, recwarn):
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count(network, 32)
    assert capfd.readouterr() == ("", "") and not caplog.records and not recwarn.list
    assert network.training and all(p.requires_grad for p in network.parameters())
    assert not network._forward_hooks and not network.encoder.blocks[0]._forward_pre_hooks
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_size_that_is_no_multiple_of_the_patch_size(network):
    with pytest.raises(ValueError, match="30x30"):
        count(network, 30)
