"""Weights of networks of stages: timm's own files, prefixed, nested, original."""

import re

import pytest
import timm
import torch
from safetensors.torch import save_file

from cosa.core.errors import UserError
from cosa.encoders import pretrained as weights
from cosa.encoders.build import build_encoder
from cosa.encoders.pretrained import load_encoder_weights
from cosa.encoders.translation import strip_prefix
from tests.helpers.encoder_weights import forget_the_machine

TINY = {
    "resnet18": {"channels": (4, 4, 8, 8), "layers": (1, 1, 1, 1)},
    "convnext_atto": {"dims": (4, 4, 8, 8), "depths": (1, 1, 2, 1)},
    "convnextv2_atto": {"dims": (4, 4, 8, 8), "depths": (1, 1, 2, 1)},
    "swin_tiny_patch4_window7_224": {"embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2)},
    "mobilenetv3_small_050": {},
}


def full(name, seed=1):
    """A model with its head, of which every tensor tells the seed, as timm's files hold them."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=5, **TINY[name])
    for buffer in model.buffers():
        buffer.uniform_(0.5, 1.5) if buffer.is_floating_point() else None
    return model


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    forget_the_machine(monkeypatch, tmp_path)


def holds(encoder, state):
    mine = encoder.state_dict()
    return len(mine) > 10 and all(torch.equal(tensor, state[key]) for key, tensor in mine.items())


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("wrap", ["", "module.", "module.backbone.", "nested"])
def test_files_of_timm(name, wrap, tmp_path):
    state = full(name).state_dict()
    encoder = build_encoder(name, TINY[name])
    if wrap == "nested":
        torch.save({"epoch": 3, "state_dict": {f"net.{k}": v for k, v in state.items()},
                    "optimizer": {}}, tmp_path / "a.pth")
    else:
        save_file({f"{wrap}{k}": v for k, v in state.items()} | {"decoder.w": torch.ones(1)},
                  tmp_path / "a.safetensors")
    (path,) = tmp_path.glob("a.*")
    assert "ignored (" in load_encoder_weights(encoder, name, path)
    assert holds(encoder, state)


@pytest.mark.parametrize("name", TINY)
def test_files_without_a_head(name, tmp_path):
    """Such as the program's own, which timm may take for original ones."""
    torch.manual_seed(1)
    state = build_encoder(name, TINY[name]).state_dict()
    torch.save(state, tmp_path / f"{name}.pth")
    encoder = build_encoder(name, TINY[name])
    assert not holds(encoder, state)
    assert "0 ignored" in load_encoder_weights(encoder, name, folder=tmp_path)
    assert holds(encoder, state)


def test_batch_statistics_and_missing_counters(tmp_path):
    state = full("resnet18").state_dict()
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "old.pth")
    encoder = build_encoder("resnet18", TINY["resnet18"])
    load_encoder_weights(encoder, "resnet18", tmp_path / "old.pth")
    assert torch.equal(encoder.bn1.running_mean, state["bn1.running_mean"])
    assert holds(encoder, state)
    torch.save({k: v for k, v in state.items() if "running_var" not in k}, tmp_path / "no.pth")
    with pytest.raises(UserError, match="of its .* are not in the file .bn1.running_var"):
        load_encoder_weights(encoder, "resnet18", tmp_path / "no.pth")


def test_original_convnext_files(tmp_path):
    name = "convnext_atto"
    state = full(name).state_dict()
    original = {}
    for key, tensor in state.items():
        key = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", key)
        key = key.replace("stem.", "downsample_layers.0.").replace(".blocks.", ".")
        key = key.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        key = key.replace("head.norm", "norm").replace("head.fc", "head")
        # The original has linear layers where timm's smallest models have 1x1 convolutions.
        original[key] = tensor[..., 0, 0] if "pwconv" in key and tensor.ndim == 4 else tensor
    torch.save({"model": original}, tmp_path / "a.pth")
    encoder = build_encoder(name, TINY[name])
    load_encoder_weights(encoder, name, tmp_path / "a.pth")
    assert holds(encoder, state)


def test_original_swin_files(tmp_path):
    name = "swin_tiny_patch4_window7_224"
    state = full(name).state_dict()
    original = {
        k.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc", "head"): v
        for k, v in state.items()
    }
    original["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    torch.save({"model": original}, tmp_path / "a.pth")
    encoder = build_encoder(name, TINY[name])
    load_encoder_weights(encoder, name, tmp_path / "a.pth")
    assert holds(encoder, state)


def test_other_widths_are_refused(tmp_path):
    torch.save(full("resnet18").state_dict(), tmp_path / "a.pth")
    encoder = build_encoder("resnet18", {**TINY["resnet18"], "channels": (4, 4, 8, 16)})
    with pytest.raises(UserError, match="shape"):
        load_encoder_weights(encoder, "resnet18", tmp_path / "a.pth")
    with pytest.raises(UserError, match="npz weights exist for plain ViT"):
        load_encoder_weights(encoder, "resnet18", (tmp_path / "a.pth").rename(tmp_path / "a.npz"))


def test_the_hub_by_timms_name(tmp_path, monkeypatch):
    state = full("resnet18").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    asked = []

    def answer(repository, file, local_files_only=False):
        asked.append(repository)
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(weights, "hf_hub_download", answer)
    encoder = build_encoder("resnet18", TINY["resnet18"])
    load_encoder_weights(encoder, "resnet18.tv_in1k", folder=tmp_path)
    assert asked == ["timm/resnet18.tv_in1k"] and holds(encoder, state)


def test_the_prefix_is_the_one_with_most_of_the_keys():
    one, two = torch.ones(1), torch.ones(2)
    wanted = ["conv.weight", "bn.weight", "bn.bias"]
    state = {"a.conv.weight": one, "a.bn.weight": one, "b.c.conv.weight": two,
             "b.c.bn.weight": two, "b.c.bn.bias": two, "b.head": two, "bn.bias": one}
    stripped = strip_prefix(state, wanted)
    assert sorted(stripped) == ["bn.bias", "bn.weight", "conv.weight"]
    assert all(tensor is two for tensor in stripped.values())
    twins = {f"{prefix}{key}": tensor for key in wanted
             for prefix, tensor in (("longer.", two), ("ab.", one))}
    assert all(tensor is one for tensor in strip_prefix(twins, wanted).values())
    assert strip_prefix({"strange": one}, wanted) == {"strange": one}
