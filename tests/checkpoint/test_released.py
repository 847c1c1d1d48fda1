"""Files of the authors' released program: tensors in, the same numbers out."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import cosa
import infer
from cosa.core.errors import UserError
from cosa.data.coco import CLASSES as COCO_CLASSES
from cosa.data.voc import CLASSES as VOC_CLASSES
from cosa.inference.record import weights_digest
from tests.helpers.released import GRID, make_state, save_release


def released_forward(state, images, aux_layer: int):
    """The released network from plain PyTorch, on images in [0, 1].

    ImageNet's normalisation; the position embedding bicubic, not antialiased.
    """
    weight = state["encoder.patch_embed.proj.weight"]
    width, patch = weight.shape[0], weight.shape[-1]
    heads = width // 64
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    x = (images - mean) / std
    x = F.conv2d(x, weight, state["encoder.patch_embed.proj.bias"], stride=patch)
    h, w = x.shape[-2:]
    position = state["encoder.pos_embed"]
    grid = position[:, 1:].reshape(1, GRID, GRID, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (h, w), mode="bicubic", align_corners=False)
    x = x.flatten(2).transpose(1, 2) + grid.flatten(2).transpose(1, 2)
    cls = (state["encoder.cls_token"] + position[:, :1]).expand(len(x), -1, -1)
    x = torch.cat([cls, x], 1)
    kept = []
    for k in range(sum(name.endswith("attn.qkv.weight") for name in state)):
        p = {n.split(f"blocks.{k}.")[1]: v for n, v in state.items() if f"blocks.{k}." in n}
        y = F.layer_norm(x, (width,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        qkv = F.linear(y, p["attn.qkv.weight"], p["attn.qkv.bias"])
        q, key, v = qkv.reshape(len(x), -1, 3, heads, 64).permute(2, 0, 3, 1, 4)
        attention = (q @ key.transpose(-1, -2) / 8.0).softmax(-1)
        y = (attention @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, p["attn.proj.weight"], p["attn.proj.bias"])
        y = F.layer_norm(x, (width,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
        x = x + F.linear(y, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
        kept.append(x)
    norm = state["encoder.norm.weight"], state["encoder.norm.bias"]
    final = F.layer_norm(x, (width,), *norm, 1e-6)
    maps = [t[:, 1:].transpose(1, 2).reshape(len(x), -1, h, w) for t in (final, kept[aux_layer])]
    weights = state["classifier.weight"], state["aux_classifier.weight"]
    cams = [F.conv2d(m, weight) for m, weight in zip(maps, weights, strict=True)]
    scores = [F.conv2d(F.adaptive_max_pool2d(m, 1), weight).flatten(1)
              for m, weight in zip(maps, weights, strict=True)]
    seg = maps[0]
    for name in ("conv6", "conv7"):
        seg = F.relu(F.conv2d(seg, state[f"decoder.{name}.weight"], padding=5, dilation=5))
    seg = F.conv2d(seg, state["decoder.conv8.weight"])
    return {"cam": cams[0], "aux_cam": cams[1], "logits": scores[0], "aux_logits": scores[1],
            "seg": seg}


@pytest.mark.parametrize("patch, width, depth, aux_layer", [(16, 128, 4, -2), (8, 192, 3, -3)])
def test_outputs_equal_the_released_forward_pass(tmp_path, patch, width, depth, aux_layer):
    state = make_state(20, patch, width, depth)
    save_release(tmp_path / "voc.pth", state, aux_layer=aux_layer)
    network = cosa.load(tmp_path / "voc.pth")
    # Grids larger, smaller in one direction, smaller in both, and that of the embedding itself.
    for h, w in ((5, 6), (7, 3), (2, 3), (GRID, GRID)):
        images = torch.randn(2, 3, h * patch, w * patch)
        output = network(images)
        for name, expected in released_forward(state, images, aux_layer).items():
            found = getattr(output, name)
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, atol=1e-5, rtol=1e-4), (name, h, w)


def test_released_files_are_of_imagenets_normalisation(tmp_path, capsys):
    save_release(tmp_path / "voc.pth", make_state(), aux_layer=-3)
    network = cosa.load(tmp_path / "voc.pth")
    assert network.config.model.normalization == "imagenet"
    assert torch.equal(network.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    assert torch.equal(network.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    assert capsys.readouterr() == ("", ""), "nothing is missing"


@pytest.mark.parametrize("patch, width, depth", [(16, 128, 4), (8, 192, 3), (14, 64, 1)])
def test_the_architecture_follows_from_the_tensors(tmp_path, patch, width, depth):
    save_release(tmp_path / "x.pth", make_state(5, patch, width, depth), aux_layer=-1)
    network = cosa.load(tmp_path / "x.pth")
    encoder = network.encoder
    assert (network.stride, encoder.embed_dim, len(encoder.blocks)) == (patch, width, depth)
    assert all(block.attn.num_heads == width // 64 for block in encoder.blocks)
    assert encoder.patch_embed.grid_size == (GRID, GRID)
    assert (network.num_classes, network.decoder.conv6.out_channels) == (5, 24)


@pytest.mark.parametrize("arguments, block", [
    ({"aux_layer": -2}, 2), ({"aux_layer": -4}, 0), ({"aux_layer": 1}, 1), ({}, 1),
])
def test_the_auxiliary_layer_follows_from_the_arguments(tmp_path, arguments, block):
    state = make_state()
    save_release(tmp_path / "namespace.pth", state, **arguments)
    torch.save({"model": state, "args": dict(arguments)}, tmp_path / "dict.pth")
    for name in ("namespace.pth", "dict.pth"):  # by default the paper's -3
        assert cosa.load(tmp_path / name).reader.aux_layer == block


@pytest.mark.parametrize("wrong", [None, "third", 4, -5, 1.0])
def test_an_auxiliary_layer_that_is_none_is_refused(tmp_path, wrong):
    save_release(tmp_path / "x.pth", make_state(), aux_layer=wrong)
    with pytest.raises(UserError, match="x.pth was saved with aux_layer=.* none of its 4 blocks"):
        cosa.load(tmp_path / "x.pth")


@pytest.mark.parametrize("names", [VOC_CLASSES, COCO_CLASSES, ("class_1", "class_2", "class_3")])
def test_class_names_follow_from_their_number(tmp_path, names):
    save_release(tmp_path / "x.pth", make_state(len(names)), aux_layer=-3)
    network = cosa.load(tmp_path / "x.pth")
    assert network.classes == tuple(names)
    assert len(network.palette) == len(names) + 1
    assert network.reader.aux_layer == 1  # -3 of four blocks
    assert network.image_size == 448 and network.config.evaluate.flip is True
    assert network.thresholds == (None, None)


def test_infer_takes_released_weights(tmp_path):
    save_release(tmp_path / "voc_weights.pth", make_state(), aux_layer=-3)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), (200, 90, 10)).save(tmp_path / "photos/a.jpg")
    code = infer.main([
        str(tmp_path / "photos"), "--weights", str(tmp_path / "voc_weights.pth"),
        "--output", str(tmp_path / "masks"), "--device", "cpu", "--size", "32", "--scales", "1",
        "--no-flip",
    ])
    assert code == 0
    with Image.open(tmp_path / "masks/a.png") as mask:
        assert mask.size == (40, 30)
    assert "aeroplane" in (tmp_path / "masks/classes.csv").read_text()


def test_a_bare_file_with_module_prefixes_loads_as_far_as_it_goes(tmp_path, capsys):
    state = make_state()
    for name in ("conv6", "conv7", "conv8"):
        del state[f"decoder.{name}.weight"]
    del state["aux_classifier.weight"]
    bare = {f"module.{key}": value for key, value in state.items()}
    extra = {"module.proj_head.last.weight": torch.zeros(3), "module.decoder.conv6.bias":
             torch.zeros(24), "module.encoder.head.weight": torch.zeros(1000, 128)}
    torch.save({**bare, **extra}, tmp_path / "toco.pth")
    network = cosa.load(tmp_path / "toco.pth")
    for name, value in state.items():
        torch.testing.assert_close(network.state_dict()[name], value, atol=0, rtol=0)
    missing, unused = capsys.readouterr().err.splitlines()
    assert missing.startswith(f"note: {tmp_path / 'toco.pth'} has no aux_classifier.weight, "
                              "decoder.conv6.weight, decoder.conv7.weight, decoder.conv8.weight:")
    assert "holds decoder.conv6.bias, for which this network has no place" in unused
    assert network(torch.randn(1, 3, 32, 32)).seg.isfinite().all()


def test_a_file_without_classifier_takes_the_classes_of_the_decoder(tmp_path, capsys):
    state = make_state(80)
    del state["classifier.weight"]
    torch.save(state, tmp_path / "coco.pth")
    assert cosa.load(tmp_path / "coco.pth").classes == tuple(COCO_CLASSES)
    assert "has no classifier.weight" in capsys.readouterr().err


def test_what_a_file_lacks_is_the_same_at_each_loading(tmp_path, capsys):
    state = make_state()
    del state["aux_classifier.weight"], state["decoder.conv8.weight"]
    torch.save(state, tmp_path / "toco.pth")
    digests = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        network = cosa.load(tmp_path / "toco.pth")
        digests.add(weights_digest(network))
    assert len(digests) == 1 and network.decoder.conv8.weight.std() > 0
    assert capsys.readouterr().err.count("stay at random values") == 2


def test_a_complete_file_loads_in_silence(tmp_path, capsys):
    save_release(tmp_path / "voc.pth", make_state(), aux_layer=-3)
    cosa.load(tmp_path / "voc.pth")
    assert capsys.readouterr() == ("", "")


def test_an_incomplete_encoder_is_refused(tmp_path):
    state = make_state()
    del state["encoder.blocks.2.mlp.fc1.weight"]
    save_release(tmp_path / "x.pth", state)
    with pytest.raises(UserError, match=r"blocks\.2\.mlp\.fc1"):
        cosa.load(tmp_path / "x.pth")


@pytest.mark.parametrize("change, reason", [
    ({"encoder.pos_embed": None}, "has no encoder.pos_embed"),
    ({"encoder.patch_embed.proj.weight": torch.zeros(128, 768)}, "has no encoder.patch_embed"),
    ({"classifier.weight": None, "decoder.conv8.weight": None}, "has no classifier.weight or"),
    ({"encoder.blocks.999999999.norm1.weight": torch.zeros(128)}, "lacks blocks"),
    ({"encoder.pos_embed": torch.zeros(1, 16, 128)}, "15 positions and 128 channels"),
    ({"encoder.pos_embed": torch.zeros(1, 0, 128)}, "-1 positions"),
    ({"encoder.patch_embed.proj.weight": torch.zeros(100, 3, 16, 16)}, "100 channels"),
    ({"encoder.patch_embed.proj.weight": torch.zeros(64, 3, 16, 16)}, "of another shape"),
    ({"decoder.conv8.weight": torch.zeros(81, 24, 1, 1)}, "decoder.conv8.weight"),  # 20 classes
])
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, change, reason):
    state = {k: v for k, v in (make_state() | change).items() if v is not None}
    save_release(tmp_path / "x.pth", state)
    with pytest.raises(UserError, match=reason) as caught:
        cosa.load(tmp_path / "x.pth")
    assert "x.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_paths_of_other_systems_and_versions_load(tmp_path, monkeypatch):
    """What Python 3.13 and Windows write; no system has both kinds of paths."""

    def path_class(module, name):
        written = type(name, (), {"__reduce__": lambda self: (type(self), ("a", "b"))})
        written.__module__, written.__qualname__ = module, name
        return written

    local, plain = types.ModuleType("pathlib._local"), types.ModuleType("pathlib")
    values = {}
    for module in (local, plain):
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
            setattr(module, name, path_class(module.__name__, name))
            values[f"{module.__name__}.{name}"] = getattr(module, name)()
    content = {"model": make_state(), "args": argparse.Namespace(aux_layer=-2, **values)}
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pathlib._local", local)
        patched.setitem(sys.modules, "pathlib", plain)
        torch.save(content, tmp_path / "x.pth")
    assert cosa.load(tmp_path / "x.pth").reader.aux_layer == 2


class Malicious:
    """Unpickling it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("pwned",)


class MaliciousPath:
    """The same by means of a path, whose class is allowed."""

    def __reduce__(self):
        return pathlib.PosixPath("pwned").mkdir, ()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("evil, name", [(Malicious, r"\.mkdir"), (MaliciousPath, r"getattr")])
def test_code_beside_the_arguments_is_refused_and_not_run(
    tmp_path, monkeypatch, evil, name, zipped
):
    monkeypatch.chdir(tmp_path)
    content = {"model": make_state(), "args": argparse.Namespace(x=evil())}
    torch.save(content, "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=f"evil.pth holds .*{name}.* refused") as caught:
        cosa.load("evil.pth")
    assert "\n" not in str(caught.value)
    assert not os.path.exists("pwned")
    torch.load("evil.pth", weights_only=False)
    assert os.path.exists("pwned"), "the file would have done harm"


def test_code_in_the_place_of_a_tensor_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"module.classifier.weight": Malicious(), **make_state()}, "evil.pth")
    with pytest.raises(UserError, match="refused"):
        cosa.load("evil.pth")
    assert not os.path.exists("pwned")
