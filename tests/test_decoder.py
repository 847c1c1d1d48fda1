"""The decoder, of both stages and at a finer grid: by hand, in the network, in what reads it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import cosa
from cosa.affinity import affinity, spread
from cosa.benchmark.timings.flops import count
from cosa.cam import resize
from cosa.checkpoint import build_network, save_weights
from cosa.config import from_dict, to_dict
from cosa.core.errors import UserError
from cosa.data.images import to_tensor
from cosa.decoder import REDUCED, FinerDecoder, LargeFOV
from cosa.ema import AssignmentNetwork
from cosa.export.check import compare
from cosa.export.forward import ExportedForward, trace
from cosa.inference.segmenter import Segmenter
from cosa.inference.settings import Settings
from cosa.network import CoSANetwork, NetworkOutput
from cosa.pictures.palette import voc_palette
from cosa.predict import multi_scale
from tests.helpers import cotraining as tiny_cotraining
from tests.helpers.cotraining import ON, TERMS
from tests.helpers.tiny import CNN, tiny_tree

FINER = CNN | {"decoder_stride": 8}


def tiny(**options):
    torch.manual_seed(0)
    given = {"decoder_width": 8, "decoder_dilation": 1} | CNN | options
    return CoSANetwork(3, **given)


def rgb_image(width, height):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def noise(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


# By hand


def test_the_logits_are_those_of_largefov_and_a_correction():
    torch.manual_seed(0)
    decoder = FinerDecoder(6, 5, 4, width=8, dilation=1)
    features, fine = torch.randn(2, 6, 3, 4), torch.randn(2, 5, 6, 8)
    plain = LargeFOV(6, 4, width=8, dilation=1)
    plain.load_state_dict(decoder.state_dict(), strict=False)
    coarse = resize(plain(features), (6, 8))
    mean = fine.mean(dim=1, keepdim=True)
    deviation = (fine.var(dim=1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    reduced = F.relu(F.conv2d((fine - mean) / deviation, decoder.reduce.weight))
    assert reduced.shape[1] == REDUCED
    joined = torch.cat([resize(decoder.hidden(features), (6, 8)), reduced], dim=1)
    hidden = F.relu(F.conv2d(joined, decoder.join.weight, padding=1))
    expected = coarse + F.conv2d(hidden, decoder.correct.weight)
    torch.testing.assert_close(decoder(features, fine), expected)
    torch.nn.init.zeros_(decoder.correct.weight)
    torch.testing.assert_close(decoder(features, fine), coarse)


def test_the_multiply_adds_of_the_correction():
    plain, finer = (count(tiny(decoder_stride=stride), (32, 48)) for stride in (0, 8))
    positions = 4 * 6
    join = 9 * (8 + REDUCED) * 8
    assert finer.macs - plain.macs == positions * (16 * REDUCED + join + 8 * 4)
    assert finer.encoder_macs == plain.encoder_macs


# In the network


@pytest.mark.parametrize("encoder, options, wanted, stride", [
    ("resnet10t", CNN["encoder_options"], 8, 16),
    ("resnet10t", CNN["encoder_options"], 4, 16),
    ("tf_efficientnet_lite0", {}, 8, 16),
    ("swin_tiny_patch4_window7_224",
     {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}, 16, 32),
])
def test_the_segmentation_alone_is_finer(encoder, options, wanted, stride):
    images = noise(2, 3, 64, 96)
    finer = tiny(encoder=encoder, encoder_options=options, decoder_stride=wanted).eval()
    plain = tiny(encoder=encoder, encoder_options=options).eval()
    plain.load_state_dict({k: v for k, v in finer.state_dict().items() if k in plain.state_dict()})
    assert (finer.stride, finer.seg_stride) == (plain.stride, wanted) == (stride, wanted)
    assert plain.seg_stride == stride
    one, other = plain(images), finer(images)
    for name in ("cam", "aux_cam", "logits", "features"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.seg.shape == (2, 4, 64 // stride, 96 // stride)
    assert other.seg.shape == (2, 4, 64 // wanted, 96 // wanted)
    assert other.seg.dtype == torch.float32 and other.seg.isfinite().all()


def test_the_last_stage_of_the_stride_is_read():
    network = tiny(encoder="tf_efficientnet_lite0", encoder_options={}, decoder_stride=8)
    # Stem and first stage 2, then 4, 8, and 16 from the fourth on.
    assert (network.reader.fine_stage, network.reader.fine_width) == (3, 40)
    caught = []
    network.encoder.blocks[2].register_forward_hook(lambda _, inputs, out: caught.append(out))
    fine = network.encode(noise(1, 3, 32, 32)).fine
    assert torch.equal(caught[0], fine) and fine.shape == (1, 40, 4, 4)


@pytest.mark.parametrize("frozen", [0, 3])
def test_the_gradient_reaches_the_earlier_stage_if_it_is_trained(frozen):
    network = tiny(decoder_stride=8)
    network.freeze_first_layers(frozen)  # the stem and the stages of strides 4 and 8
    torch.nn.init.zeros_(network.decoder.conv8.weight)  # so that nothing comes by LargeFOV
    torch.nn.init.zeros_(network.decoder.join.weight[:, :8])
    network(noise(2, 3, 32, 32)).seg.square().sum().backward()
    assert network.decoder.reduce.weight.grad.any()
    of_stage = [p.grad for p in network.encoder.layer2.parameters()]
    assert all((grad is None) == bool(frozen) for grad in of_stage)
    assert frozen or any(grad.any() for grad in of_stage)


@pytest.mark.parametrize("options, message", [
    ({"encoder": "vit_tiny_patch16_224", "encoder_options": {"depth": 3}},
     "model.decoder_stride=8 cannot be had of vit_tiny_patch16_224: all blocks of a plain ViT"),
    ({"decoder_stride": 16}, "model.decoder_stride=16 cannot be had of resnet10t, whose maps have "
                             "a stride of 16: choose 8 or 4, of which it has a stage, or 0"),
    ({"decoder_stride": 2}, "choose 8 or 4"),
])
def test_a_stride_that_cannot_be_had_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        tiny(**{"decoder_stride": 8} | options)


def test_the_means_of_a_finer_segmentation_are_spread():
    images = noise(2, 3, 32, 48)
    plain, spreading = (tiny(decoder_stride=8, **options).eval()
                        for options in ({}, {"cam_steps": 2, "seg_steps": 1}))
    one, other, read = plain(images), spreading(images), spreading.reader.read(
        spreading.encoder, (images - spreading.mean) / spreading.std, early=True)
    weights = affinity((read.early, 4.0))
    torch.testing.assert_close(other.cam, spread(F.relu(one.cam), weights, 2))
    means = one.seg.softmax(dim=1).unflatten(3, (3, 2)).unflatten(2, (2, 2)).mean((3, 5))
    change = spread(means, weights, 1) / means
    expected = one.seg.log_softmax(dim=1) + resize(change.log(), (4, 6))
    torch.testing.assert_close(other.seg, expected, atol=1e-5, rtol=1e-4)
    # Where nothing is like anything else, nothing changes.
    spreading.affinity_power = 1e6
    torch.testing.assert_close(spreading(images).seg.softmax(1), one.seg.softmax(1))


def both(**options):
    return tiny(**({"decoder_aux": True} | options)).eval()


VIT = {"encoder": "vit_tiny_patch16_224",
       "encoder_options": {"depth": 3, "embed_dim": 24, "patch_size": 16, "img_size": 32}}


@pytest.mark.parametrize("options", [{}, {"aux_norm": True}, {"decoder_stride": 8}, VIT])
def test_the_decoder_sees_the_auxiliary_features_behind_the_final_ones(options):
    network, images = both(**options), noise(2, 3, 32, 48)
    final, aux, _, fine = network.encode(images)
    assert network.decoder.conv6.in_channels == final.shape[1] + aux.shape[1]
    output = network(images)
    expected = network.decoder(torch.cat([final, aux], dim=1), fine)
    assert torch.equal(output.seg, expected) and torch.equal(output.features, final)
    with torch.no_grad():
        network.decoder.conv6.weight[:, final.shape[1]:] = 0
    plain = tiny(**options).eval()
    known = network.state_dict() | {
        "decoder.conv6.weight": network.decoder.conv6.weight[:, : final.shape[1]]}
    plain.load_state_dict(known)
    for name in ("seg", "cam", "aux_cam", "logits"):
        torch.testing.assert_close(getattr(plain(images), name), getattr(network(images), name))


def test_the_gradient_of_the_segmentation_reaches_both_stages():
    network = both()
    with torch.no_grad():
        network.decoder.conv6.weight[:, :32] = 0  # so that nothing comes by the final features
    network(noise(2, 3, 32, 32)).seg.square().sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in network.encoder.layer4.parameters())
    assert any(p.grad.any() for p in network.encoder.layer3.parameters())


# What reads the maps


@pytest.mark.parametrize("regularizers", [{}, ON])
@pytest.mark.parametrize("aux", [False, True])
def test_a_step_trains_all_of_the_decoder(regularizers, aux):
    model = FINER | {"decoder_aux": aux}
    cotraining = tiny_cotraining.build(
        model=model, regularizers={k: v for k, v in regularizers.items() if k != "csd"})
    loss, terms = cotraining.step(tiny_cotraining.make_batch(), 0)
    loss.backward()
    assert loss.isfinite() and {*TERMS, *cotraining.active_terms(0)} <= set(terms)
    assert all(p.grad.any() for p in cotraining.online.decoder.parameters())
    before = cotraining.assignment.network.decoder.reduce.weight.clone()
    with torch.no_grad():
        cotraining.online.decoder.reduce.weight += 1
    cotraining.update_assignment(0)
    assert not torch.equal(cotraining.assignment.network.decoder.reduce.weight, before)


def test_the_terms_of_plca_see_the_mean_over_a_position():
    """The mean of a finer segmentation is what a segmentation of the features' grid would be."""
    cotraining = tiny_cotraining.build(model=CNN, regularizers={"plca": {"weight": 1.0}})
    (plca,), batch = cotraining.active_regularizers(0), tiny_cotraining.make_batch()
    size = tuple(side // 16 for side in batch["valid"].shape[1:])
    seg, labels = noise(3, 5, 2 * size[0], 2 * size[1]), torch.zeros(3, *size, dtype=torch.int64)
    output = cotraining.online(batch["weak"])
    context = tiny_cotraining.context_of(batch, output)
    given = type("Targets", (), {"labels": labels, "perplexity": torch.zeros(3, *size)})()
    by_hand = seg.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
    for finer, expected in ((seg, by_hand), (by_hand, by_hand)):
        output.seg = finer
        view = plca._view(context, output, given, batch["valid"], batch["image_labels"])
        torch.testing.assert_close(view[1], expected)


def test_scores_stay_in_full_precision_in_the_copy_that_is_cast():
    online = tiny(decoder_stride=8)
    cast = AssignmentNetwork(online, torch.bfloat16)
    plain = AssignmentNetwork(online)
    decoder = cast.called.decoder
    assert decoder.join.weight.dtype == decoder.reduce.weight.dtype == torch.bfloat16
    assert decoder.conv8.weight.dtype == decoder.correct.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = (net(noise(1, 3, 32, 32)).seg for net in (cast, plain))
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_maps_of_two_grids_are_fused():
    network, images = tiny(decoder_stride=8).eval(), noise(2, 3, 45, 62)
    found = multi_scale(network, images, (1.0, 0.5))
    assert found.seg.shape == (2, 4, 45, 62) and found.cam.shape == (2, 3, 45, 62)
    mirrored = multi_scale(network, images.flip(-1), (1.0, 0.5))
    torch.testing.assert_close(mirrored.seg.flip(-1), found.seg, atol=1e-5, rtol=1e-4)


class Patches(torch.nn.Module):
    """Sees each patch by itself, the segmentation on a grid twice as fine as the others'."""

    stride = 8

    def forward(self, images):
        means, finer = F.avg_pool2d(images, 8), F.avg_pool2d(images, 4)
        return NetworkOutput(means.amax((2, 3)), None, means, -means, finer, None)


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("finer", [0, 8])
def test_whole_and_slide_agree_in_shape(mode, finer):
    network = tiny(decoder_stride=finer).eval()
    settings = Settings(64, (1.0, 0.5), True, mode, window=32, stride=16, max_size=64)
    use = Segmenter(network, settings, cam=True, batch_size=2)
    (maps,) = use.predict([use.prepare(rgb_image(64, 64), None)])
    # 64 pixels are 4 positions, 4 cells each; whole maps are of the pixels.
    assert maps.seg.shape == ((4, 16, 16) if mode == "slide" else (4, 64, 64))
    assert use.saved_grid((64, 64)) == (16, 16)


@pytest.mark.parametrize("flip", [False, True])
def test_windows_change_nothing_of_a_finer_segmentation(flip):
    settings = Settings(64, (1.0,), flip, "slide", window=32, stride=20, max_size=96)
    image, network = rgb_image(96, 72), Patches()
    network.num_classes = 2
    network.weight = torch.nn.Parameter(torch.zeros(1))
    use = Segmenter(network, settings, cam=True, batch_size=3)
    (maps,) = use.predict([use.prepare(image, [1, 2])])
    expected = multi_scale(network, to_tensor(image)[None], (1.0,), flip, use.saved_grid((72, 96)))
    torch.testing.assert_close(maps.seg, expected.seg[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(maps.cam, expected.cam[0, :2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("aux", [False, True])
def test_a_network_is_the_same_in_a_file(tmp_path, suffix, aux):
    config = to_dict(from_dict(tiny_tree(model=FINER | {"decoder_aux": aux})))
    torch.manual_seed(0)
    network = build_network(config, 3).eval()
    path = tmp_path / f"best.{suffix}"
    save_weights(path, network, config=config, classes=("a", "b", "c"), palette=voc_palette(4))
    loaded = cosa.load(path)
    assert loaded.seg_stride == 8
    assert loaded.decoder.conv6.in_channels == (56 if aux else 32)
    assert torch.equal(loaded(noise(1, 3, 32, 48)).seg, network(noise(1, 3, 32, 48)).seg)


@pytest.mark.parametrize("aux", [False, True])
def test_what_is_exported_is_the_same(aux):
    network = tiny(decoder_stride=8, decoder_aux=aux, seg_steps=1, cam_steps=1).eval()
    cases = [(1, 32, 48), (3, 80, 32)]
    assert max(compare(ExportedForward(network), network, cases)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("aux", [False, True])
def test_it_is_exported_for_any_size(aux):
    network = tiny(decoder_stride=8, decoder_aux=aux, seg_steps=1, cam_steps=1).eval()
    program = trace(network, None).module()
    assert max(compare(program, network, [(1, 32, 48), (3, 80, 32)])) < 1e-4
