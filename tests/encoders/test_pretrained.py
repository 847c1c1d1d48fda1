import argparse
import copy
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from cosa.core import hub
from cosa.core.errors import UserError
from cosa.encoders import pretrained as weights
from cosa.encoders.build import build_encoder
from cosa.encoders.pretrained import load_encoder_weights
from tests.helpers.encoder_weights import forget_the_machine

NAME = "vit_tiny_patch16_224"
TAG = "augreg_in21k_ft_in1k"  # timm's default tag
OPTIONS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


def build(seed, **options):
    torch.manual_seed(seed)
    return build_encoder(NAME, {**OPTIONS, **options})


@pytest.fixture
def source():
    return build(1)


@pytest.fixture
def encoder():
    return build(2)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    forget_the_machine(monkeypatch, tmp_path)


def same(first, second):
    second = second.state_dict()
    return all(torch.equal(tensor, second[key]) for key, tensor in first.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_explicit_file(source, encoder, tmp_path, suffix):
    path = tmp_path / f"any{suffix}"
    state = {**source.state_dict(), "head.weight": torch.zeros(3, 24), "head.bias": torch.zeros(3)}
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    assert not same(source, encoder)
    report = load_encoder_weights(encoder, NAME, path)
    assert same(source, encoder)
    count = len(source.state_dict())
    assert report == f"{path}: {count} tensors loaded, 2 ignored (head.bias, head.weight)"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"module.encoder.{k}": v for k, v in s.items()} | {"decoder.w": torch.ones(1)},
        lambda s: {"model": s, "args": argparse.Namespace(lr=1.0), "epoch": 3},
        lambda s: {"state_dict": {f"backbone.{k}": v for k, v in s.items()}, "optimizer": {}},
        lambda s: {"student": {}, "teacher": {f"backbone.{k}": v for k, v in s.items()}},
    ],
)
def test_prefixes_and_nesting(source, encoder, tmp_path, wrap):
    torch.save(wrap(source.state_dict()), tmp_path / "a.pth")
    load_encoder_weights(encoder, NAME, tmp_path / "a.pth")
    assert same(source, encoder)


def test_lookup_by_name(encoder, tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    folder.mkdir()
    seeds = {}
    for seed, stem in enumerate([f"{NAME}.{TAG}", NAME, f"{NAME}.mine"]):
        torch.save(build(seed).state_dict(), folder / f"{stem}.pth")
        seeds[stem] = seed
    load_encoder_weights(encoder, NAME, folder=folder)
    assert same(build(seeds[NAME]), encoder)
    load_encoder_weights(encoder, f"{NAME}.mine", folder=folder)
    assert same(build(seeds[f"{NAME}.mine"]), encoder)
    load_encoder_weights(encoder, f"{NAME}.other", folder=folder)  # falls back to no tag
    assert same(build(seeds[NAME]), encoder)
    (folder / f"{NAME}.pth").unlink()
    monkeypatch.chdir(tmp_path)
    report = load_encoder_weights(encoder, NAME)  # falls back to the default tag
    assert same(build(seeds[f"{NAME}.{TAG}"]), encoder)
    assert report.startswith("weights/")


def test_relative_paths_are_found_in_the_project_too(source, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "PROJECT_FOLDER", tmp_path)
    (tmp_path / "weights").mkdir()
    save_file(source.state_dict(), tmp_path / "weights" / "mine.safetensors")
    load_encoder_weights(encoder, NAME, "weights/mine.safetensors")
    assert same(source, encoder)


def test_explicit_file_wins_and_must_exist(source, encoder, tmp_path):
    torch.save(encoder.state_dict(), tmp_path / f"{NAME}.pth")
    torch.save(source.state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="nowhere.pth does not exist"):
        load_encoder_weights(encoder, NAME, tmp_path / "nowhere.pth", folder=tmp_path)
    load_encoder_weights(encoder, NAME, tmp_path / "other.pth", folder=tmp_path)
    assert same(source, encoder)


def test_position_embedding_of_another_grid(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / "a.pth")  # grid 4x4
    encoder = build(2, img_size=48)  # grid 6x6
    load_encoder_weights(encoder, NAME, tmp_path / "a.pth")
    square = source.pos_embed[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    expected = F.interpolate(square, (6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(encoder.pos_embed[:, 1:], expected.flatten(2).transpose(1, 2))
    assert torch.equal(encoder.pos_embed[:, 0], source.pos_embed[:, 0])


def google_arrays(encoder):
    """The inverse of the conversion: an encoder's tensors in the layout of Google's files."""
    state = {key: value.numpy() for key, value in encoder.state_dict().items()}
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    heads = encoder.blocks[0].attn.num_heads
    for index in range(len(encoder.blocks)):
        mine, theirs = f"blocks.{index}.", f"Transformer/encoderblock_{index}/"
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{theirs}{name}/scale"] = state[f"{mine}{norm}.weight"]
            arrays[f"{theirs}{name}/bias"] = state[f"{mine}{norm}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        weight = np.split(state[f"{mine}attn.qkv.weight"], 3)
        bias = np.split(state[f"{mine}attn.qkv.bias"], 3)
        for name, w, b in zip(("query", "key", "value"), weight, bias, strict=True):
            arrays[f"{attention}{name}/kernel"] = w.T.reshape(len(w), heads, -1)
            arrays[f"{attention}{name}/bias"] = b.reshape(heads, -1)
        out = state[f"{mine}attn.proj.weight"].T
        arrays[f"{attention}out/kernel"] = out.reshape(heads, -1, out.shape[1])
        arrays[f"{attention}out/bias"] = state[f"{mine}attn.proj.bias"]
        for layer in (0, 1):
            dense = f"{theirs}MlpBlock_3/Dense_{layer}/"
            arrays[f"{dense}kernel"] = state[f"{mine}mlp.fc{layer + 1}.weight"].T
            arrays[f"{dense}bias"] = state[f"{mine}mlp.fc{layer + 1}.bias"]
    return arrays


def test_google_npz(source, encoder, tmp_path):
    path = tmp_path / f"{NAME}.npz"
    np.savez(path, **google_arrays(source))
    load_encoder_weights(encoder, NAME, folder=tmp_path)
    assert same(source, encoder)
    larger = build(2, img_size=48)
    load_encoder_weights(larger, NAME, path)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    reference = build(3, img_size=48)
    load_encoder_weights(reference, NAME, tmp_path / "a.pth")
    assert same(reference, larger)
    np.savez(path, banana=np.zeros(3))
    with pytest.raises(UserError, match="npz"):
        load_encoder_weights(encoder, NAME, path)


def test_final_norm_before_or_behind_the_pooling(source, tmp_path):
    encoder = build(2, global_pool="avg")
    assert "fc_norm.weight" in encoder.state_dict()
    with torch.no_grad():
        source.norm.weight.fill_(3.0)
    torch.save(source.state_dict(), tmp_path / "a.pth")
    load_encoder_weights(encoder, NAME, tmp_path / "a.pth")
    assert (encoder.fc_norm.weight == 3.0).all()


def test_original_dinov2_with_registers(tmp_path):
    options = {"img_size": 56, "embed_dim": 24, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    encoder = build_encoder("vit_small_patch14_reg4_dinov2", options)
    state = copy.deepcopy(dict(encoder.state_dict()))
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, 24)
    state["cls_token"] = torch.full((1, 1, 24), 2.0)
    state["pos_embed"] = torch.cat([torch.full((1, 1, 24), 3.0), state["pos_embed"]], 1)
    torch.save(state, tmp_path / "dinov2.pth")
    position = encoder.pos_embed.clone()
    load_encoder_weights(encoder, "vit_small_patch14_reg4_dinov2", tmp_path / "dinov2.pth")
    assert (encoder.cls_token == 5.0).all() and torch.equal(encoder.pos_embed, position)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.qkv.weight"), "1 of its 30.*blocks.1.attn.qkv.weight"),
        (lambda s: s.update({"norm.bias": torch.zeros(7)}), r"norm.bias has shape \(7,\)"),
        (lambda s: s.clear(), "30 of its 30 .*cls_token"),
    ],
)
def test_files_that_do_not_fit(source, encoder, tmp_path, change, message):
    state = dict(source.state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    before = copy.deepcopy(encoder)
    with pytest.raises(UserError, match=message):
        load_encoder_weights(encoder, NAME, tmp_path / "a.pth")
    assert same(before, encoder)


def test_other_sizes_are_refused(encoder, tmp_path):
    torch.save(build(1, embed_dim=48).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(UserError, match="shape"):
        load_encoder_weights(encoder, NAME, tmp_path / "wide.pth")


def test_open_clip_state_dicts(tmp_path):
    name = "vit_base_patch16_clip_quickgelu_224.openai"
    torch.manual_seed(1)
    source = build_encoder(name, OPTIONS)
    names = {
        "patch_embed.proj": "conv1", "pos_embed": "positional_embedding", "norm_pre": "ln_pre",
        "cls_token": "class_embedding", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "norm1": "ln_1", "norm2": "ln_2",
        "blocks.": "transformer.resblocks.",
    }  # fmt: skip
    state = {"logit_scale": torch.zeros(()), "visual.proj": torch.zeros(24, 8)}
    for key, tensor in source.state_dict().items():
        for mine, theirs in names.items():
            key = key.replace(mine, theirs)
        key = key.replace("norm.", "ln_post.") if key.startswith("norm.") else key
        state[f"visual.{key}"] = tensor.flatten(0, -2).squeeze(0) if "embedding" in key else tensor
    torch.save(state, tmp_path / "clip.pt")
    encoder = build_encoder(name, OPTIONS)
    load_encoder_weights(encoder, name, tmp_path / "clip.pt")
    assert same(source, encoder)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_torchscript_is_named(encoder, tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "c.pt")
    with pytest.raises(UserError, match="c.pt is a TorchScript program, as OpenAI's CLIP"):
        load_encoder_weights(encoder, NAME, tmp_path / "c.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_pth(source, encoder, tmp_path):
    """Whatever damage does, it is told in one sentence; some damage only changes numbers."""
    path = tmp_path / "a.pth"
    torch.save(source.state_dict(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, 3000, 8):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            load_encoder_weights(encoder, NAME, path)
        except UserError as error:
            refused += 1
            assert "a.pth" in str(error)
    assert refused > 50


class ConnectionLost(Exception):
    """Like those of HTTP clients, no OSError."""


@pytest.mark.parametrize("error", [ConnectionLost("gone\nfar"), RuntimeError("xet"), OSError()])
def test_connection_lost_during_the_download(encoder, tmp_path, monkeypatch, error):
    def lose(repository, file, local_files_only=False):
        raise LocalEntryNotFoundError("not here") if local_files_only else error

    monkeypatch.setattr(weights, "hf_hub_download", lose)
    monkeypatch.setattr(weights, "hub_is_reachable", lambda: True)
    with pytest.raises(UserError, match="no pre-trained weights of") as caught:
        load_encoder_weights(encoder, NAME, folder=tmp_path)
    message = str(caught.value)
    assert (str(error)[:4] or "OSError") in message and "\n" not in message


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


def test_files_with_code_are_refused(source, encoder, tmp_path):
    torch.save({"model": source.state_dict(), "extra": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="could run code"):
        load_encoder_weights(encoder, NAME, tmp_path / "evil.pth")
    assert not Payload.ran


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.npz", "a.txt"])
def test_broken_files(encoder, tmp_path, name):
    for content in (b"", b"not a weight file at all"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            load_encoder_weights(encoder, NAME, tmp_path / name)


def test_offline_without_a_file(encoder, tmp_path):
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_encoder_weights(encoder, NAME, folder=tmp_path)
    assert time.monotonic() - start < 5
    message = str(caught.value)
    assert f"timm/{NAME}.{TAG}" in message and "model.pretrained=false" in message
    assert str(tmp_path / f"{NAME}.safetensors") in message and "\n" not in message


def test_hub_cache_is_used_offline(source, encoder, tmp_path, monkeypatch):
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def answer(repository, file, local_files_only=False):
        asked.append((repository, file, local_files_only))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(weights, "hf_hub_download", answer)
    load_encoder_weights(encoder, NAME, folder=tmp_path)
    assert same(source, encoder)
    assert asked == [(f"timm/{NAME}.{TAG}", "model.safetensors", True)]


def test_models_that_the_hub_does_not_have(encoder, tmp_path):
    with pytest.raises(UserError, match="set model.weights"):
        load_encoder_weights(encoder, "vit_small_patch16_18x2_224", folder=tmp_path)


def test_offline_flag_needs_no_network(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.hub_is_reachable() is False
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://localhost:9")  # discard: closed
    assert hub.hub_is_reachable(timeout=1.0) is False
