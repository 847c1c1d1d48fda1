"""Depthwise convolutions with a quick way back are those of PyTorch."""

import copy

import pytest
import torch
from torch import nn

from cosa.encoders.build import build_encoder
from cosa.encoders.depthwise import DepthwiseConv2d, quicken

SHAPES = [
    dict(kernel_size=5, padding=2),
    dict(kernel_size=3, padding=2, dilation=2),
    dict(kernel_size=(5, 3), padding=(0, 3), dilation=(1, 2), bias=False),
    dict(kernel_size=(1, 7), padding=(2, 1)),  # rows of zeros that no weight brings back
    dict(kernel_size=6, padding=1),
]


def pair(**options) -> tuple[nn.Conv2d, nn.Conv2d]:
    plain = nn.Conv2d(4, 4, groups=4, **options).double()
    quick = nn.Sequential(copy.deepcopy(plain))
    quicken(quick)
    assert type(quick[0]) is DepthwiseConv2d
    return plain, quick[0]


@pytest.mark.parametrize("options", SHAPES)
def test_results_and_gradients_are_those_of_the_convolution(options):
    torch.manual_seed(0)
    plain, quick = pair(**options)
    images = torch.randn(3, 4, 9, 12, dtype=torch.float64, requires_grad=True)
    expected, found = plain(images), quick(images)
    torch.testing.assert_close(found, expected)
    seen = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * seen).sum(), [images, *plain.parameters()])
    for one, other in zip(
        torch.autograd.grad((found * seen).sum(), [images, *quick.parameters()]), wanted,
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_gradients_flow_only_to_what_is_trained():
    _, quick = pair(kernel_size=5, padding=2)
    images = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    quick(images).sum().backward()
    assert quick.weight.grad is not None and images.grad is None
    own = quick._conv_forward(images, quick.weight, None).grad_fn
    assert "_Depthwise" in str(own), "PyTorch's own way back would pass all other tests here"
    quick.weight.requires_grad_(False)
    images.requires_grad_(True)
    quick(images).sum().backward()
    assert images.grad is not None


def test_under_autocast_it_is_as_exact_as_bfloat16():
    torch.manual_seed(0)
    quick = DepthwiseConv2d(8, 8, 5, padding=2, groups=8)
    images = torch.randn(2, 8, 16, 16, requires_grad=True)
    exact = torch.autograd.grad(quick(images).square().sum(), [images, quick.weight])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quick(images)
    assert found.dtype == torch.bfloat16
    rough = torch.autograd.grad(found.float().square().sum(), [images, quick.weight])
    for one, other in zip(rough, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("options", [
    dict(kernel_size=3, padding=1, groups=4),                # quick in PyTorch, too
    dict(kernel_size=5, padding=2),                          # not depthwise
    dict(kernel_size=5, padding=2, groups=4, stride=2),
    dict(kernel_size=5, padding=2, groups=4, padding_mode="reflect"),
    dict(kernel_size=5, padding="same", groups=4),
])
def test_other_convolutions_stay(options):
    quick = nn.Sequential(nn.Conv2d(4, 4, **options))
    quicken(quick)
    assert type(quick[0]) is nn.Conv2d


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto"])
def test_an_encoder_learns_with_them_what_it_does_without(name):
    torch.manual_seed(0)
    encoder = build_encoder(name, {}).double().eval()
    quick = [module for module in encoder.modules() if type(module) is DepthwiseConv2d]
    assert quick and all(max(conv.kernel_size) > 3 or max(conv.dilation) > 1 for conv in quick)
    plain = copy.deepcopy(encoder)
    for module in plain.modules():
        if type(module) is DepthwiseConv2d:
            module.__class__ = nn.Conv2d
    assert list(plain.state_dict()) == list(encoder.state_dict())
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    for network in (encoder, plain):
        network.forward_features(images).square().mean().backward()
    for one, other in zip(encoder.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
