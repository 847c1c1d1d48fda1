"""The pretraining of the demo's encoder."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from cosa.config import load_config
from cosa.data.scenes import pretrain
from cosa.data.scenes.dataset import CLASSES
from cosa.encoders.pretrained import load_encoder_weights


def test_images_are_a_function_of_the_generator():
    first, attributes = pretrain.generate(np.random.default_rng(3))
    again, same = pretrain.generate(np.random.default_rng(3))
    other, _ = pretrain.generate(np.random.default_rng(4))
    assert first.shape == (pretrain.SIZE, pretrain.SIZE, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and attributes == same
    assert not np.array_equal(first, other)


def test_no_object_is_of_a_class_of_the_scenes():
    """The heads that tell the scenes' classes apart are never drawn here."""
    assert not {c.head for c in CLASSES} & set(pretrain.TEXTURES)


def test_attention_is_silent_until_it_is_switched_on():
    torch.manual_seed(0)
    network = pretrain.AttributeClassifier().eval()
    images = torch.randn(1, 3, pretrain.SIZE, pretrain.SIZE)
    changed = images.clone()
    changed[:, :, :8, :8] = 0  # the first patch
    start = network.encoder.num_prefix_tokens

    def moved() -> torch.Tensor:
        with torch.no_grad():
            a, b = (network.encoder.forward_features(x)[0, start:] for x in (images, changed))
        return (a - b).abs().amax(1) > 1e-6

    assert moved()[0] and not moved()[1:].any()
    network.switch_attention_on()
    assert moved().all()


def test_whitening_gives_decorrelated_patches():
    images, _ = pretrain.draw_set(0, 60)
    encoder = pretrain.AttributeClassifier().encoder
    pretrain.whiten_patch_embedding(encoder, images)
    with torch.no_grad():
        still = torch.Generator().manual_seed(0)
        tokens = encoder.patch_embed(pretrain.augment(images, still)).reshape(-1, 96)
    covariance = torch.cov(tokens.T)
    off = covariance - covariance.diag().diag()
    assert off.abs().max() < 1e-3
    assert 0.5 < covariance.diag().max() <= 1.0


def test_fitting_lowers_the_loss():
    torch.manual_seed(0)
    data = pretrain.draw_set(0, 64)
    network = pretrain.AttributeClassifier()
    pretrain.whiten_patch_embedding(network.encoder, data[0])
    before = pretrain.accuracy(network, data)
    pretrain.fit(network, data, 25, 2e-3, torch.Generator().manual_seed(0))
    assert pretrain.accuracy(network, data)[0] > before[0] + 0.2


def test_a_handful_of_steps_is_enough_to_warm_up():
    data = pretrain.draw_set(0, 4)
    network = pretrain.AttributeClassifier()
    before = network.heads[0].weight.detach().clone()
    pretrain.fit(network, data, 2, 1e-3, torch.Generator().manual_seed(0))
    assert not torch.equal(network.heads[0].weight, before)


def test_the_shipped_encoder_is_the_demos():
    model = load_config("configs/demo.yaml").model
    assert model.encoder == pretrain.ENCODER
    assert model.encoder_options == pretrain.ENCODER_OPTIONS
    encoder = timm.create_model(model.encoder, num_classes=0, dynamic_img_size=True,
                                **model.encoder_options)
    load_encoder_weights(encoder, model.encoder, model.weights)
    shipped = load_file(model.weights)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, shipped[name]), name


def test_attention_of_the_shipped_encoder_is_trained():
    scales = [v for k, v in load_file("weights/scenes_encoder.safetensors").items()
              if k.endswith("ls1.gamma")]
    assert len(scales) == 6
    assert all(s.std() > 0 for s in scales)
    assert float(torch.cat(scales).mean()) == pytest.approx(pretrain.ATTENTION_START, abs=0.15)
