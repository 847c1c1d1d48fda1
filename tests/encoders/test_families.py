"""One small encoder of each family is trained, evaluated, saved, loaded and exported."""

import pytest
import torch
from PIL import Image

import cosa
from cosa.benchmark.timings.flops import count
from cosa.benchmark.timings.footprint import footprint
from cosa.benchmark.timings.random_network import write_random
from cosa.checkpoint import save_weights
from cosa.config import from_dict, to_dict
from cosa.core.errors import UserError
from cosa.data import build_dataset
from cosa.data.batches import to_device
from cosa.data.images import network_input
from cosa.data.loader import training_loader
from cosa.data.partners import PartnerViews
from cosa.evaluate import evaluate
from cosa.export import command
from cosa.export.check import compare
from cosa.export.forward import ExportedForward, trace
from cosa.inference.jobs import Job
from cosa.network import CoSANetwork
from cosa.pictures.palette import voc_palette
from cosa.predict import multi_scale
from cosa.regularizers.registry import REGULARIZERS
from cosa.training.build import build_cotraining, check_crop
from tests.helpers import cotraining as tiny_cotraining
from tests.helpers.cotraining import ON
from tests.helpers.tiny import CNN, tiny_tree, write_yaml

SIZE = 64

SCENES = {"data": {"scenes_train": 60, "scenes_size": SIZE}, "augment": {"crop_size": SIZE}}

FAMILIES = {
    "resnet10t": (CNN["encoder_options"], 16, 32, 24),
    "convnext_atto": ({"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}, 16, 32, 24),
    "tf_efficientnet_lite0": ({}, 16, 320, 192),
    "mobilenetv3_small_050": ({}, 32, 288, 48),
    "swin_tiny_patch4_window7_224": (
        {"embed_dim": 8, "depths": [2, 1, 1, 1], "num_heads": [1, 2, 2, 4]}, 32, 64, 32,
    ),
    "pvt_v2_b0": (
        {"embed_dims": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
        32, 32, 16,
    ),
    "vit_tiny_patch16_224": ({"embed_dim": 24, "depth": 3, "num_heads": 2}, 16, 24, 24),
}
"""Name -> options, stride, channels of the final and of the auxiliary map."""

UNUSED = ("encoder.conv_head.",)
"""Behind the pooling of a MobileNetV3."""


@pytest.fixture(scope="module")
def batch():
    """Four scenes, with the partners that CSD asks for."""
    config = from_dict(tiny_tree(**SCENES))
    loader = training_loader(
        build_dataset(config.data, "train"), batch_size=4, seed=1, iterations=1, workers=0,
        stream=PartnerViews, **to_dict(config.augment),
    )
    (only,) = loader
    assert (only["partner_class"] >= 0).any()
    return to_device(only, "cpu", torch.zeros(3, 1, 1))


def build(name, **sections):
    model = {"encoder": name, "encoder_options": FAMILIES[name][0]}
    return tiny_cotraining.build(classes=7, model=model | sections.pop("model", {}),
                                 **SCENES, **sections)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_all_the_way(name, batch, tmp_path):
    cotraining = build(name)
    network = cotraining.online
    _, stride, width, aux_width = FAMILIES[name]
    assert (network.stride, network.reader.width, network.reader.aux_width) == (
        stride, width, aux_width)
    # Trained: all terms, gradients everywhere in the encoder that reaches a map.
    loss, terms = cotraining.step(batch, 0)
    loss.backward()
    assert loss.isfinite() and len(terms) == len(tiny_cotraining.TERMS)
    reached = [(n, p) for n, p in network.named_parameters() if not n.startswith(UNUSED)]
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in reached)
    assert next(p for _, p in reached if p.ndim == 4).grad.any(), "the first convolution's"
    with torch.no_grad():
        for _, parameter in reached:
            parameter -= 1e-3 * parameter.grad
    cotraining.update_assignment(0)
    # Evaluated.
    config = from_dict(tiny_tree(model={"encoder": name, "encoder_options": FAMILIES[name][0]},
                                 **SCENES))
    scenes = build_dataset(config.data, "val")
    average = cotraining.assignment.network.eval()
    scores = evaluate(average, scenes, image_size=SIZE, scales=(1.0,), max_images=2,
                      progress=False)
    assert 0 <= scores["miou"] <= 1 and scores["images"] == 2
    # Saved and loaded: the same maps, at an odd size, too.
    save_weights(tmp_path / "x.safetensors", average, config=to_dict(config),
                 classes=scenes.classes, palette=voc_palette(8))
    loaded, images = cosa.load(tmp_path / "x.safetensors"), torch.rand(1, 3, 75, 101)
    with torch.no_grad():
        mine, other = (multi_scale(net, images, (1.0, 0.5)) for net in (average, loaded))
    assert torch.equal(mine.seg, other.seg) and torch.equal(mine.aux_cam, other.aux_cam)
    assert mine.seg.shape == (1, 8, 75, 101) and mine.seg.isfinite().all()
    # As it is exported.
    form = ExportedForward(loaded)
    assert max(compare(form, loaded, [(2, 2 * stride, 3 * stride)])) < 1e-5
    # Counted.
    counted = count(loaded, (stride, 2 * stride))
    assert 0 < counted.encoder_macs < counted.macs
    assert count(loaded, (2 * stride, 2 * stride)).macs == pytest.approx(2 * counted.macs, rel=0.4)


def test_multiply_adds_of_a_cnn_by_hand():
    """A convolution of 3x3 takes 9 products of each pair of channels at each position."""
    name = "resnet10t"
    network = build(name).online
    positions, found = {}, 0
    convolutions = [m for m in network.encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    hooks = [m.register_forward_hook(lambda m, _, out: positions.update({m: out[0, 0].numel()}))
             for m in convolutions]
    network(torch.zeros(1, 3, 32, 48))
    for hook in hooks:
        hook.remove()
    for m in convolutions:
        found += positions[m] * m.weight.numel()
    assert count(network, (32, 48)).encoder_macs == found > 0


def test_a_random_cnn_shows_several_classes(tmp_path):
    """For the benchmark of inference without trained weights."""
    tree = tiny_tree(model=CNN, evaluate={"image_size": SIZE})
    image = Image.effect_noise((90, 70), 80).convert("RGB")
    image.save(tmp_path / "x.png")
    path = tmp_path / "random.pth"
    job = Job("x.png", tmp_path / "x.png", {})
    write_random(path, str(write_yaml(tmp_path / "c.yaml", tree)), None, job)
    network = cosa.load(path)
    with torch.no_grad():
        seg = multi_scale(network, network_input(image, SIZE)[None], (1.0,)).seg
    assert len(seg.argmax(1).unique()) > 1


def test_the_memory_of_a_step_of_a_cnn():
    def counted(**train):
        tree = tiny_tree(model=CNN, device="cpu", threshold={"dynamic": False},
                         train={"batch_size": 8, **train})
        return footprint(from_dict(tree), 4, bf16=False)

    plain, small = counted(), counted(activation_checkpointing=True)
    assert small["kept"] == plain["kept"] and small["peak"] < plain["peak"]
    assert small["operations"] > plain["operations"]


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0"])
def test_all_regularizers_take_a_step_on_a_cnn(name, batch):
    cotraining = build(name, regularizers=ON)
    loss, terms = cotraining.step(batch, 0)
    loss.backward()
    assert loss.isfinite() and set(cotraining.regularizers) == set(REGULARIZERS)
    assert {"isl", "fsl", "plda_adversarial", "csd_foreground", "dense_energy"} <= set(terms)
    assert any(key.startswith("plca") for key in terms)
    assert all(p.grad is not None for p in network_weights(cotraining))


def network_weights(cotraining):
    return list(cotraining.online.encoder.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {
    "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"}))
def test_a_network_of_stages_is_exported_for_any_size(name):
    network = build(name).online.eval()
    stride = network.stride
    program = trace(network, None).module()
    cases = [(1, 2 * stride, 3 * stride), (3, 5 * stride, 2 * stride)]
    assert max(compare(program, network, cases)) < 1e-4


def test_a_swin_is_exported_for_one_size_at_once(monkeypatch, capfd):
    asked = []
    monkeypatch.setattr(command, "convert", lambda network, size, opset: (
        asked.append(size), b"" if size else trace(network, size))[1])
    network = build("swin_tiny_patch4_window7_224").online.eval()
    assert command.convert_as_free_as_possible(network, 96, False, None) == (b"", False)
    assert asked == [None, 96]
    note = capfd.readouterr().err
    assert "shifted windows take too long" in note and "so the size is fixed" in note


# Batch statistics


def statistics(network):
    return {name: value.clone() for name, value in network.named_buffers()
            if name.endswith(("running_mean", "running_var"))}


def test_frozen_statistics_stay_and_their_scales_are_trained(batch):
    cotraining = build("resnet10t")
    network = cotraining.online.train()
    before = statistics(network)
    assert before and network.moving_statistics() == []
    cotraining.step(batch, 0)[0].backward()
    after = statistics(network)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    norm = network.encoder.bn1
    assert not norm.training and norm.weight.grad.any() and norm.bias.grad.any()
    assert network.training and network.encoder.layer1.training


def test_a_network_is_frozen_from_the_start():
    network = CoSANetwork(2, "resnet10t", CNN["encoder_options"], decoder_width=8)
    before = statistics(network)
    network(torch.rand(2, 3, 32, 32))
    assert all(torch.equal(statistics(network)[name], value) for name, value in before.items())


def test_moving_statistics_by_hand(batch):
    cotraining = build("resnet10t", model={"freeze_batch_norm": False},
                       teacher={"momentum": 0.75})
    network, average = cotraining.online, cotraining.assignment.network
    norm, seen = network.encoder.bn1, []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    cotraining.step(batch, 0)
    hook.remove()
    (inputs,) = seen
    mean, var = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3))  # a tenth of them, from 0 and 1
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * var)
    assert not average.encoder.bn1.running_mean.any(), "the teacher's do not move by themselves"
    cotraining.update_assignment(0)
    torch.testing.assert_close(average.encoder.bn1.running_mean, 0.025 * mean)
    torch.testing.assert_close(average.encoder.bn1.running_var, 0.75 + 0.25 * norm.running_var)
    assert average.encoder.bn1.num_batches_tracked == norm.num_batches_tracked == 1
    assert not average.encoder.bn1.training


# Activation checkpointing


def checkpointed(name, on, **model):
    tree = {"encoder": name, "encoder_options": FAMILIES.get(name, ({},))[0], **model}
    config = from_dict(tiny_tree(model=tree, train={"activation_checkpointing": on}, **SCENES))
    torch.manual_seed(0)
    return build_cotraining(config, 3, torch.device("cpu"), torch.no_grad)


@pytest.mark.parametrize(("name", "share", "frozen"), [
    ("convnext_atto", 0.5, 0), ("resnet10t", 0.9, 0), ("resnet10t", 0.9, 2),
    ("vit_tiny_patch16_224", 0.5, 1),
])
def test_checkpointing_keeps_less_and_changes_nothing(name, share, frozen):
    """The stem of a ResNet keeps most of what it has, at the full resolution."""
    def step(on):
        cotraining, kept = checkpointed(name, on, freeze_layers=frozen), []
        images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            output = cotraining.online(images)
        (output.seg.sum() + output.aux_cam.sum()).backward()
        return sum(kept), [p.grad for p in cotraining.online.parameters() if p.grad is not None]

    (plain, expected), (small, found) = step(False), step(True)
    assert small < share * plain and found
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize(("name", "model", "message"), [
    ("resnet10t", {"freeze_batch_norm": False}, "twice: set model.freeze_batch_norm=true"),
    ("hrnet_w18_small", {}, "HighResolutionNet, twice: set train.activation_checkpointing=false"),
])
def test_checkpointing_that_cannot_be(name, model, message):
    with pytest.raises(UserError, match=message):
        checkpointed(name, True, **model)


def test_an_encoder_that_ignores_checkpointing_is_refused(monkeypatch):
    from timm.models.resnet import ResNet

    monkeypatch.setattr(ResNet, "set_grad_checkpointing", lambda self, enable=True: None)
    with pytest.raises(UserError, match="a ResNet, twice"):
        checkpointed("resnet10t", True)


# Strides


@pytest.mark.parametrize(("wanted", "stride"), [(0, 16), (8, 8), (16, 16), (32, 32)])
def test_the_output_stride_of_a_resnet(wanted, stride):
    options = CNN["encoder_options"]
    network = CoSANetwork(2, "resnet10t", options, output_stride=wanted, decoder_width=8)
    assert network.stride == stride
    with torch.no_grad():
        output = network(torch.rand(1, 3, 64, 96))
    assert output.seg.shape[2:] == output.aux_cam.shape[2:] == (64 // stride, 96 // stride)


def test_a_finer_auxiliary_stage_is_averaged():
    options = CNN["encoder_options"]
    network = CoSANetwork(2, "resnet10t", options, aux_stage=1, decoder_width=8).eval()
    assert (network.reader.aux_width, network.reader.aux_stride) == (8, 4)
    caught = []
    network.encoder.layer1.register_forward_hook(lambda _, inputs, out: caught.append(out))
    with torch.no_grad():
        aux = network.encode(torch.rand(1, 3, 32, 48)).aux
    by_hand = caught[0].unflatten(3, (3, 4)).unflatten(2, (2, 4)).mean((3, 5))
    torch.testing.assert_close(aux, by_hand)


def test_a_crop_that_is_no_multiple_of_the_stride():
    network = build("pvt_v2_b0").online
    config = from_dict(tiny_tree(augment={"crop_size": 80}))
    with pytest.raises(UserError, match="crop_size=80 is no multiple of the encoder's stride 32: "
                                        "use 64|use 96"):
        check_crop(config, network)
    with pytest.raises(ValueError, match="48x64 is no multiple of the encoder's stride, 32"):
        network(torch.zeros(1, 3, 48, 64))
