import math

import pytest
import torch
import torch.nn.functional as F

from cosa.core.errors import UserError
from cosa.encoders.normalization import IMAGENET
from cosa.encoders.vit import embed, patches_by_product, resize_position_embedding
from cosa.network import CamClassifier, CoSANetwork

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2}


def tiny(**options):
    torch.manual_seed(0)
    return CoSANetwork(3, "vit_tiny_patch16_224", TINY, decoder_width=8, **options).eval()


ENCODERS = {
    "vit_small_patch16_224": 1,
    "deit_base_patch16_224": 1,
    "deit_base_distilled_patch16_224": 2,
    "deit3_small_patch16_224": 1,  # no_embed_class
    "vit_small_patch14_dinov2": 1,
    "vit_small_patch14_reg4_dinov2": 5,
    "vit_small_patch16_dinov3": 5,  # rotary, no absolute position embedding
    "eva02_tiny_patch14_224": 1,  # rotary and absolute, the final norm behind the pooling
    "vit_base_patch16_siglip_224": 0,  # attention pooling
}


@pytest.mark.parametrize(("name", "prefix"), ENCODERS.items())
def test_encoders_of_timm(name, prefix):
    torch.manual_seed(0)
    options = {"depth": 3, "embed_dim": 96, "num_heads": 2, "img_size": 56 if "14" in name else 64}
    network = CoSANetwork(5, name, options, aux_layer=-2, decoder_width=8).eval()
    encoder, patch = network.encoder, network.stride
    assert patch == (14 if "14" in name else 16)
    with torch.no_grad():
        output = network(torch.randn(2, 3, 2 * patch, 3 * patch))
        assert output.logits.shape == output.aux_logits.shape == (2, 5)
        assert output.cam.shape == output.aux_cam.shape == (2, 5, 2, 3)
        assert output.seg.shape == (2, 6, 2, 3)
        assert output.features.shape == (2, 96, 2, 3)
        # At the pre-training size nothing is resized: timm's own forward is the reference.
        images = torch.randn(2, 3, 4 * patch, 4 * patch)
        features, aux_features = network.encode(images)[:2]
        normalised = (images - network.mean) / network.std
        final, (aux,) = encoder.forward_intermediates(normalised, indices=[1], norm=False)
        assert final.shape[1] == 16 + prefix
        final = encoder.fc_norm(final)[:, prefix:].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(features, final)
    torch.testing.assert_close(aux_features, aux)
    assert not torch.allclose(features, aux_features, atol=1e-3)
    # the final tokens are normalised: a fresh LayerNorm leaves mean 0 and variance 1
    torch.testing.assert_close(features.mean(1), torch.zeros(2, 4, 4), atol=1e-5, rtol=0)


# Normalisation


def test_images_are_normalised_by_hand():
    network = tiny(normalization=[[0.5, 0.25, 0.0], [0.5, 0.25, 2.0]])
    assert network.mean.shape == network.std.shape == (3, 1, 1)
    assert network.mean.dtype == network.std.dtype == torch.float32
    seen = []
    network.encoder.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.tensor([0.75, 0.125, 1.0])[None, :, None, None].expand(2, 3, 16, 8)
    output = network(images)
    by_hand = torch.tensor([0.5, -0.5, 0.5])[None, :, None, None].expand(2, 3, 16, 8)
    assert torch.equal(seen[0], by_hand)
    features, aux_features = network.encode(images)[:2]
    assert torch.equal(output.features, features) and not torch.equal(features, aux_features)


@pytest.mark.parametrize("normalization", ["encoder", "imagenet"])
def test_images_of_the_mean_colour_are_exactly_zero(normalization):
    network = tiny(normalization=normalization)
    seen = []
    network.encoder.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(network.mean.expand(1, 3, 16, 8))
    assert seen[0].dtype == torch.float32 and not seen[0].any()


@pytest.mark.parametrize(("name", "expected"), [
    ("vit_tiny_patch16_224", [[0.5] * 3, [0.5] * 3]),
    ("vit_small_patch14_dinov2", IMAGENET),
])
def test_the_encoders_own_normalisation_is_the_default(name, expected):
    options = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    network = CoSANetwork(2, name, options, aux_layer=0, decoder_width=8)
    found = torch.stack([network.mean, network.std]).flatten(1)
    assert torch.equal(found, torch.tensor(expected))
    assert not any(name in ("mean", "std") for name, _ in network.named_parameters())


def test_weights_without_normalisation_are_of_imagenets():
    """Those of earlier versions, and of the released programs."""
    old = tiny(normalization="imagenet")
    state = {k: v for k, v in old.state_dict().items() if k not in ("mean", "std")}
    network = tiny()
    assert network.mean.unique().tolist() == [0.5]
    network.load_state_dict(state)
    assert "mean" not in state, "the caller's own is left alone"
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(network(images).cam, old(images).cam)
    other = tiny()
    other.load_state_dict({"classifier.weight": state["classifier.weight"]}, strict=False)
    assert other.mean.unique().tolist() == [0.5], "no weights of an encoder say nothing of it"


def test_weights_bring_their_normalisation_along():
    network, images = tiny(normalization="imagenet"), torch.rand(1, 3, 16, 16)
    network.load_state_dict(tiny().state_dict())
    assert torch.equal(network(images).cam, tiny()(images).cam)


@pytest.mark.parametrize(("layer", "block"), [(-3, 1), (-1, 3), (0, 0), (2, 2)])
def test_aux_layer_is_the_raw_output_of_its_block(layer, block):
    network = tiny(aux_layer=layer)
    caught = {}
    network.encoder.blocks[block].register_forward_hook(
        lambda module, inputs, output: caught.update(tokens=output)
    )
    output = network(torch.randn(1, 3, 16, 24))
    tokens = caught["tokens"][:, 1:].transpose(1, 2).unflatten(2, (2, 3))
    expected = torch.einsum("bdhw,cd->bchw", tokens, network.aux_classifier.weight[:, :, 0, 0])
    torch.testing.assert_close(output.aux_cam, expected)
    expected = tokens.amax((2, 3)) @ network.aux_classifier.weight[:, :, 0, 0].T
    torch.testing.assert_close(output.aux_logits, expected)


def test_aux_norm_normalises_the_auxiliary_tokens():
    plain, normed = tiny(), tiny(aux_norm=True)
    normed.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(1, 3, 16, 16)
    raw, norm = plain.encode(images)[1], normed.encode(images)[1]
    expected = F.layer_norm(raw.permute(0, 2, 3, 1), (24,), eps=1e-6).permute(0, 3, 1, 2)
    torch.testing.assert_close(norm, expected)


def test_scores_pool_the_tokens_before_classifying():
    network = tiny()
    with torch.no_grad():
        output = network(torch.randn(2, 3, 24, 16))
    weight = network.classifier.weight[:, :, 0, 0]
    for image in range(2):
        tokens = output.features[image].flatten(1)
        torch.testing.assert_close(output.cam[image].flatten(1), weight @ tokens)
        torch.testing.assert_close(output.logits[image], weight @ tokens.amax(1))
    # classify, then pool would give other scores
    assert not torch.allclose(output.logits, output.cam.amax((2, 3)))
    torch.testing.assert_close(output.seg, network.decoder(output.features))


def by_hand(pooling, offset):
    """Two channels on a grid of 1x2, three classes, weights of one digit."""
    classifier = CamClassifier(2, 3, pooling, offset)
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    with torch.no_grad():
        classifier.weight.copy_(weight[:, :, None, None])
    features = torch.tensor([[3.0, 1.0], [-2.0, 4.0]])[None, :, None]  # (1, 2, 1, 2)
    return classifier, features


@pytest.mark.parametrize(("pooling", "expected"), [
    ("max", [[3.0, 8.0, 1.0]]),  # of the maxima 3 and 4
    ("avg", [[2.0, 2.0, -1.0]]),  # of the means 2 and 1
])
def test_a_classifier_by_hand(pooling, expected):
    classifier, features = by_hand(pooling, offset=False)
    assert classifier.offset is None and list(classifier.state_dict()) == ["weight"]
    assert classifier.scores(features).tolist() == expected
    cam = [[[[3.0, 1.0]], [[-4.0, 8.0]], [[-5.0, 3.0]]]]
    assert classifier(features).tolist() == cam
    moved, _ = by_hand(pooling, offset=True)
    torch.testing.assert_close(
        moved.scores(features), torch.tensor(expected) - math.log(2), msg="the odds of 1 in 3"
    )
    with torch.no_grad():
        moved.offset.copy_(torch.tensor([1.0, 10.0, -100.0]))
    by_class = torch.tensor(expected) + torch.tensor([1.0, 10.0, -100.0])
    torch.testing.assert_close(moved.scores(features), by_class)
    assert moved(features).tolist() == cam, "no CAM contains the offset"


def test_class_scores_of_positions_have_the_mean_of_the_image():
    network = tiny(pooling="avg", aux_pooling="avg", class_offset=True)
    for classifier in (network.classifier, network.aux_classifier):
        torch.nn.init.normal_(classifier.offset)
    output = network(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(output.position_logits.mean(dim=(2, 3)), output.logits)
    torch.testing.assert_close(output.aux_position_logits.mean(dim=(2, 3)), output.aux_logits)
    plain = tiny()(torch.rand(1, 3, 32, 32))
    assert plain.position_logits.equal(plain.cam)


def test_the_gradient_of_the_offset():
    """That of the scores, which the CAM does not reach."""
    classifier, features = by_hand("avg", offset=True)
    weights = torch.tensor([[1.0, -2.0, 0.5]])
    (weights * classifier.scores(features)).sum().backward()
    assert classifier.offset.grad.tolist() == weights[0].tolist()
    # Averages reach each position alike.
    assert classifier.weight.grad[:, 0, 0, 0].tolist() == [2.0, -4.0, 1.0]
    classifier.zero_grad()
    classifier(features).sum().backward()
    assert classifier.offset.grad is None


@pytest.mark.parametrize("classes", [1, 2, 20])
def test_offsets_start_at_the_odds_of_one_class_among_all(classes):
    offset = CamClassifier(4, classes, "max", True).offset
    expected = -math.log(classes - 1) if classes > 1 else 0.0
    torch.testing.assert_close(offset.detach(), torch.full((classes,), expected))


def test_both_classifiers_pool_and_shift_as_configured():
    plain, images = tiny(), torch.randn(2, 3, 24, 16)
    network = tiny(pooling="avg", class_offset=True)
    missing, unexpected = network.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["classifier.offset", "aux_classifier.offset"] and not unexpected
    with torch.no_grad():
        network.classifier.offset.copy_(torch.tensor([1.0, 2.0, 3.0]))
        network.aux_classifier.offset.fill_(-5.0)
        expected, output = plain(images), network(images)
    for name in ("cam", "aux_cam", "seg", "features"):
        assert torch.equal(getattr(output, name), getattr(expected, name)), name
    # Classifying is linear: averages may come before or after.
    shift = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(output.logits, expected.cam.mean((2, 3)) + shift)
    torch.testing.assert_close(output.aux_logits, expected.aux_logits - 5.0)
    network = tiny(aux_pooling="avg")
    network.load_state_dict(plain.state_dict())
    with torch.no_grad():
        output = network(images)
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.aux_logits, expected.aux_cam.mean((2, 3)))


def test_heads_are_float32_under_autocast():
    network = tiny()
    images = torch.randn(1, 3, 24, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(images)
        assert network.encoder.blocks[0].mlp.fc1(torch.ones(1, 24)).dtype is torch.bfloat16
    for name in ("logits", "aux_logits", "cam", "aux_cam", "seg"):
        maps = getattr(output, name)
        assert maps.dtype is torch.float32, name
        assert not torch.equal(maps, maps.bfloat16().float()), f"{name} has 8 bits only"
    weight = network.classifier.weight[:, :, 0, 0]
    expected = torch.einsum("bdhw,cd->bchw", output.features.float(), weight)
    torch.testing.assert_close(output.cam, expected)
    half = network.bfloat16()(images.bfloat16())
    assert half.cam.dtype is half.seg.dtype is torch.bfloat16, "as its weights"


def test_decoder_sees_at_most_two_dilations_far():
    network = tiny()
    features = torch.zeros(1, 24, 31, 31, requires_grad=True)
    torch.nn.init.normal_(features)
    network.decoder(features)[0, 0, 15, 15].backward()
    rows = features.grad.abs().sum((0, 1, 3)).nonzero().flatten().tolist()
    assert rows == [5, 10, 15, 20, 25]  # two 3x3 kernels, dilation 5


def test_state_dict_has_the_released_keys():
    keys = set(tiny().state_dict())
    heads = {key for key in keys if not key.startswith("encoder.")}
    assert heads == {
        "classifier.weight",
        "aux_classifier.weight",
        "decoder.conv6.weight",
        "decoder.conv7.weight",
        "decoder.conv8.weight",
        "mean",  # of the input's normalisation, which released files lack
        "std",
    }
    assert {"encoder.pos_embed", "encoder.cls_token", "encoder.blocks.3.mlp.fc2.bias"} <= keys
    assert not any("head" in key for key in keys)


@pytest.mark.parametrize("grid", [(7, 4), (2, 3), (3, 3)])
def test_position_embedding_is_resized_without_antialiasing(grid):
    torch.manual_seed(0)
    position = torch.randn(1, 1 + 16, 5)
    resized = resize_position_embedding(position, (4, 4), grid)
    square = position[:, 1:].reshape(1, 4, 4, 5).permute(0, 3, 1, 2)
    expected = F.interpolate(square, grid, mode="bicubic", align_corners=False, antialias=False)
    torch.testing.assert_close(resized[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2))
    assert torch.equal(resized[:, :1], position[:, :1])
    other = F.interpolate(square, grid, mode="bicubic", align_corners=False, antialias=True)
    assert (other - expected).abs().max() > 1e-3  # timm's default


def test_patches_by_product_are_those_of_the_convolution():
    patch_embed = tiny().encoder.patch_embed
    images = torch.randn(2, 3, 48, 16)
    expected = patch_embed(images)
    found = patch_embed.norm(patches_by_product(patch_embed.proj, images))
    assert found.shape == expected.shape == (2, 6, 2, 24)
    torch.testing.assert_close(found, expected)


def test_resized_position_embedding_reaches_the_tokens():
    network = tiny()
    encoder = network.encoder
    images = torch.randn(1, 3, 48, 16)  # grid (6, 2); the embedding's own is (4, 4)
    before, grid = embed(encoder, images)
    assert grid == (6, 2)
    resized = resize_position_embedding(encoder.pos_embed, (4, 4), grid)
    torch.testing.assert_close(before[:, :1], encoder.cls_token + resized[:, :1])
    patches = encoder.patch_embed(images).flatten(1, 2)
    torch.testing.assert_close(before[:, 1:], patches + resized[:, 1:])
    assert encoder.pos_embed.shape == (1, 17, 24)  # stays at the pre-training grid


def test_parameter_groups():
    network = tiny(aux_norm=True)
    network.freeze_position_embedding()
    groups = {g["name"]: g for g in network.parameter_groups(1e-3, 10.0, 0.01)}
    assert set(groups) == {"encoder", "encoder_no_decay", "heads", "heads_no_decay"}
    names = {id(p): name for name, p in network.named_parameters()}
    members = {n: {names[id(p)] for p in g["params"]} for n, g in groups.items()}
    assert "encoder.pos_embed" not in set().union(*members.values())
    assert sum(map(len, members.values())) == len(names) - 1
    assert members["heads_no_decay"] == {"aux_norm.weight", "aux_norm.bias"}
    assert "decoder.conv8.weight" in members["heads"]
    assert "encoder.blocks.0.attn.qkv.weight" in members["encoder"]
    assert {"encoder.cls_token", "encoder.norm.weight"} <= members["encoder_no_decay"]
    for name, group in groups.items():
        scale = 10.0 if name.startswith("heads") else 1.0
        assert group["lr"] == pytest.approx(1e-3 * scale) and group["lr_scale"] == scale
        assert group["weight_decay"] == (0.0 if name.endswith("no_decay") else 0.01)
    torch.optim.AdamW(network.parameter_groups(1e-3))  # the form that optimizers take


def test_offsets_have_no_weight_decay():
    network = tiny(class_offset=True)
    groups = {g["name"]: g for g in network.parameter_groups(1e-3, 10.0, 0.01)}
    plain = groups["heads_no_decay"]
    assert [id(p) for p in plain["params"]] == [
        id(network.classifier.offset), id(network.aux_classifier.offset)]
    assert plain["weight_decay"] == 0.0 and plain["lr"] == pytest.approx(1e-2)


def gradients(network):
    """Names of the parameters that any output gives a gradient, and of those in the optimizer."""
    network.zero_grad()
    output = network(torch.randn(1, 3, 32, 32))
    sum(x.sum() for x in (output.logits, output.aux_logits, output.cam, output.seg)).backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None}
    names = {id(p): name for name, p in network.named_parameters()}
    groups = network.parameter_groups(1e-3)
    assert reached == {names[id(p)] for group in groups for p in group["params"]}
    return reached


@pytest.mark.parametrize(("count", "frozen"), [
    (0, ()),
    (1, ("cls_token", "pos_embed", "patch_embed.")),
    (3, ("cls_token", "pos_embed", "patch_embed.", "blocks.0.", "blocks.1.")),
])
def test_the_first_layers_of_a_vit_stay_frozen(count, frozen):
    network = tiny()
    names = {name for name, _ in network.named_parameters()}
    network.freeze_first_layers(count)
    stay = {n for n in names if n.startswith(tuple(f"encoder.{part}" for part in frozen))}
    assert bool(stay) == bool(count) and gradients(network) == names - stay


@pytest.mark.parametrize(("count", "frozen"), [
    (1, ("conv1.", "bn1.")), (2, ("conv1.", "bn1.", "layer1.")),
])
def test_the_first_layers_of_a_cnn_stay_frozen(count, frozen):
    network = CoSANetwork(3, "resnet10t", {"channels": [4, 4, 8, 8]}, decoder_width=8).eval()
    names = {name for name, _ in network.named_parameters()}
    network.freeze_first_layers(count)
    stay = {n for n in names if n.startswith(tuple(f"encoder.{part}" for part in frozen))}
    assert stay and gradients(network) == names - stay


def test_frozen_layers_keep_their_batch_statistics_where_others_move():
    network = CoSANetwork(3, "resnet10t", {"channels": [4, 4, 8, 8]}, decoder_width=8,
                          freeze_batch_norm=False)
    every = len(network.moving_statistics())
    network.freeze_first_layers(2)
    first = {name: norm for name, norm in network.encoder.named_modules()
             if name.startswith(("conv1.", "bn1", "layer1.")) and hasattr(norm, "running_mean")}
    assert len(network.moving_statistics()) == every - 2 * len(first) < every
    network.eval().train()
    assert network.encoder.layer2[0].bn1.training
    network(torch.rand(2, 3, 32, 32))
    assert first and all(not n.training and not n.running_mean.any() for n in first.values())
    assert network.encoder.layer2[0].bn1.running_mean.any()


@pytest.mark.parametrize(("name", "options", "count", "message"), [
    ("vit_tiny_patch16_224", TINY, 5,
     "freeze_layers=5 leaves nothing .* of 5 layers, the stem among them: choose 0 to 4"),
    ("resnet10t", {}, 99, "freeze_layers=99 leaves nothing .* choose 0 to 4"),
    ("poolformer_s12", {}, 1, "a MetaFormer, come first: set model.freeze_layers=0"),
])
def test_more_layers_than_can_be_frozen(name, options, count, message):
    network = CoSANetwork(3, name, options, decoder_width=8)
    with pytest.raises(UserError, match=message) as caught:
        network.freeze_first_layers(count)
    assert "\n" not in str(caught.value)
    network.freeze_first_layers(0)
    assert all(p.requires_grad for p in network.parameters())


def test_frozen_position_embedding_gets_no_gradient():
    network = tiny()
    network.freeze_position_embedding()
    output = network(torch.randn(1, 3, 16, 16))
    loss = sum(x.sum() for x in (output.logits, output.aux_logits, output.cam, output.seg))
    loss.backward()
    without = {name for name, p in network.named_parameters() if p.grad is None}
    assert without == {"encoder.pos_embed"}


@pytest.mark.parametrize("size", [(17, 16), (16, 12), (0, 8)])
def test_sizes_that_do_not_fit_the_patches(size):
    with pytest.raises(ValueError, match="stride, 8.*multi_scale"):
        tiny()(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "vit_bse_patch16_224"}, "did you mean 'vit_base_patch16_224'"),
        ({"encoder": "hiera_tiny_224"}, "hiera_tiny_224 takes images of one size only"),
        ({"encoder": "maxvit_pico_rw_256"}, "one size only.*choose another encoder"),
        ({"encoder": "xcit_nano_12_p16_224"}, "yields .97, 128. instead of a map of 128 channels"),
        ({"encoder": "crossvit_9_240"}, "crossvit_9_240 yields several maps"),
        ({"encoder": "resnet10t", "aux_stage": 5}, "aux_stage=5 .* 5 stages, choose -5 to 4"),
        ({"encoder": "resnet10t", "aux_stage": -6}, "model.aux_stage=-6 does not exist"),
        ({"encoder": "resnet10t", "output_stride": 5}, "resnet10t with .*output_stride=5"),
        ({"encoder": "pvt_v2_b0", "output_stride": 16}, "output_stride=16.*stride is 32"),
        ({"encoder_options": TINY, "output_stride": 16}, "output_stride=16.*stride is 8"),
        ({"encoder": "resnet10t", "encoder_options": {"banana": 1}}, "banana"),
        ({"encoder": "resnet10t", "encoder_options": {"output_stride": 8}}, "set by the network"),
        ({"encoder": "vit_tiny_patch16_224.no_such_tag"}, "no_such_tag"),
        ({"encoder_options": {"banana": 1}}, "banana"),
        ({"encoder_options": {"patch_size": 0}}, "patch_size"),
        ({"encoder_options": {"embed_dim": 24, "num_heads": 0}}, "num_heads"),
        ({"encoder_options": {"norm_layer": "nonsense"}}, "nonsense"),
        ({"encoder_options": {"img_size": []}}, "img_size"),
        ({"encoder_options": {"num_classes": 7}}, "num_classes"),
        ({"encoder_options": TINY, "aux_layer": -5}, "aux_layer=-5.*4 blocks"),
        ({"encoder_options": TINY, "aux_layer": 4}, "choose -4 to 3"),
        ({"num_classes": 0}, "at least one class"),
        ({"normalization": "imagnet"}, "model.normalization='imagnet'"),
    ],
)
def test_user_mistakes(arguments, message):
    arguments = {"num_classes": 2, "encoder": "vit_tiny_patch16_224", **arguments}
    with pytest.raises(UserError, match=message) as caught:
        CoSANetwork(**arguments)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)
