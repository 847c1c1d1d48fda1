"""Files of the authors' released program: tensors in, the same numbers out."""

from __future__ import annotations

import argparse
import os
import pathlib

import pytest
import torch
import torch.nn.functional as F

import cosa
from cosa.errors import UserError
from cosa.network import CoSANetwork

OPTIONS = {"img_size": 32, "patch_size": 16, "embed_dim": 128, "depth": 4, "num_heads": 2}


def make_state(classes: int = 20) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = CoSANetwork(classes, encoder_options=OPTIONS, aux_layer=-2, decoder_width=24)
    torch.nn.init.normal_(network.encoder.pos_embed)
    return dict(network.state_dict())


def save_release(path, state, **arguments) -> None:
    extra = {"encoder.head.weight": torch.zeros(1000, 128), "encoder.head.bias": torch.zeros(1000)}
    args = argparse.Namespace(work_dir=pathlib.PosixPath("/tmp/x"), crop_size=448, **arguments)
    torch.save({"model": {**state, **extra}, "args": args, "iter": 7}, path)


def released_forward(state, images, aux_layer: int = -2):
    """The released network from plain PyTorch: position embedding bicubic, not antialiased."""
    weight = state["encoder.patch_embed.proj.weight"]
    x = F.conv2d(images, weight, state["encoder.patch_embed.proj.bias"], stride=16)
    h, w = x.shape[-2:]
    position = state["encoder.pos_embed"]
    grid = position[:, 1:].reshape(1, 2, 2, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (h, w), mode="bicubic", align_corners=False)
    x = x.flatten(2).transpose(1, 2) + grid.flatten(2).transpose(1, 2)
    cls = (state["encoder.cls_token"] + position[:, :1]).expand(len(x), -1, -1)
    x = torch.cat([cls, x], 1)
    kept = []
    for k in range(4):
        p = {n.split(f"blocks.{k}.")[1]: v for n, v in state.items() if f"blocks.{k}." in n}
        y = F.layer_norm(x, (128,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        qkv = F.linear(y, p["attn.qkv.weight"], p["attn.qkv.bias"])
        q, key, v = qkv.reshape(len(x), -1, 3, 2, 64).permute(2, 0, 3, 1, 4)
        attention = (q @ key.transpose(-1, -2) / 8.0).softmax(-1)
        y = (attention @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, p["attn.proj.weight"], p["attn.proj.bias"])
        y = F.layer_norm(x, (128,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
        x = x + F.linear(y, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
        kept.append(x)
    final = F.layer_norm(x, (128,), state["encoder.norm.weight"], state["encoder.norm.bias"], 1e-6)
    maps = [t[:, 1:].transpose(1, 2).reshape(len(x), -1, h, w) for t in (final, kept[aux_layer])]
    cam = F.conv2d(maps[0], state["classifier.weight"])
    aux_cam = F.conv2d(maps[1], state["aux_classifier.weight"])
    seg = maps[0]
    for name in ("conv6", "conv7"):
        seg = F.relu(F.conv2d(seg, state[f"decoder.{name}.weight"], padding=5, dilation=5))
    return cam, aux_cam, F.conv2d(seg, state["decoder.conv8.weight"])


def test_outputs_equal_the_released_forward_pass(tmp_path):
    state = make_state()
    save_release(tmp_path / "voc.pth", state, aux_layer=-2)
    network = cosa.load(tmp_path / "voc.pth")
    images = torch.randn(2, 3, 80, 48)
    output = network(images)
    cam, aux_cam, seg = released_forward(state, images)
    torch.testing.assert_close(output.cam, cam, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.aux_cam, aux_cam, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.seg, seg, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count, name", [(20, "aeroplane"), (80, "person"), (3, "class_1")])
def test_class_names_follow_from_their_number(tmp_path, count, name):
    save_release(tmp_path / "x.pth", make_state(count), aux_layer=-3)
    network = cosa.load(tmp_path / "x.pth")
    assert len(network.classes) == count and network.classes[0] == name
    assert len(network.palette) == count + 1
    assert network.aux_layer == 1  # -3 of four blocks
    assert network.image_size == 448 and network.config["evaluate"]["flip"] is True


def test_a_bare_file_with_module_prefixes_loads_as_far_as_it_goes(tmp_path, capsys):
    state = make_state()
    del state["aux_classifier.weight"]
    bare = {f"module.{key}": value for key, value in state.items()}
    torch.save({**bare, "module.proj_head.last.weight": torch.zeros(3)}, tmp_path / "toco.pth")
    network = cosa.load(tmp_path / "toco.pth")
    torch.testing.assert_close(network.classifier.weight.data, state["classifier.weight"])
    assert "has no aux_classifier.weight" in capsys.readouterr().err


def test_an_incomplete_encoder_is_refused(tmp_path):
    state = make_state()
    del state["encoder.blocks.2.mlp.fc1.weight"]
    save_release(tmp_path / "x.pth", state)
    with pytest.raises(UserError, match=r"blocks\.2\.mlp\.fc1"):
        cosa.load(tmp_path / "x.pth")


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_code_beside_the_arguments_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": make_state(), "args": argparse.Namespace(x=Malicious())}, "evil.pth")
    with pytest.raises(UserError, match="refused"):
        cosa.load("evil.pth")
    assert not os.path.exists("pwned")
