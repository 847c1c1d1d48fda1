import pytest
import torch

from cosa.ema import AssignmentNetwork
from cosa.network import CoSANetwork


@pytest.fixture
def online():
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2,
               "proj_drop_rate": 0.5}
    return CoSANetwork(2, "vit_tiny_patch16_224", options, aux_layer=-2, decoder_width=8)


def test_starts_as_a_frozen_copy(online):
    images = torch.randn(1, 3, 16, 16)
    online(images).seg.sum().backward()
    average = AssignmentNetwork(online)
    mine, theirs = average.state_dict(), online.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert not any(p.requires_grad or p.grad is not None for p in average.parameters())
    assert all(p.requires_grad for p in online.parameters())
    assert average.stride == 8 and average.num_classes == 2
    with torch.no_grad():
        online.classifier.weight.add_(1.0)
    assert not torch.equal(average.network.classifier.weight, online.classifier.weight)


def test_update_by_hand(online):
    average = AssignmentNetwork(online)
    with torch.no_grad():
        for parameter in average.network.parameters():
            parameter.fill_(2.0)
        for parameter in online.parameters():
            parameter.fill_(10.0)
    average.update(online, 0.75)  # 0.75 * 2 + 0.25 * 10
    assert all((p == 4.0).all() for p in average.parameters())
    average.update(online, 0.5)
    assert all((p == 7.0).all() for p in average.parameters())
    average.update(online, 1.0)
    assert all((p == 7.0).all() for p in average.parameters())
    average.update(online, 0.0)
    assert all((p == 10.0).all() for p in average.parameters())
    assert all((p == 10.0).all() for p in online.parameters())


def test_offsets_are_averaged(online):
    offset = torch.nn.Parameter(torch.tensor([2.0, 4.0]))
    online.classifier.offset = offset
    average = AssignmentNetwork(online)
    with torch.no_grad():
        offset.copy_(torch.tensor([10.0, -4.0]))
    average.update(online, 0.75)
    assert average.network.classifier.offset.tolist() == [4.0, 2.0]


def test_update_copies_buffers(online):
    online.register_buffer("seen", torch.tensor([1.0, 2.0]))
    average = AssignmentNetwork(online)
    online.seen.fill_(5.0)
    average.update(online, 0.9)
    assert average.network.seen.tolist() == [5.0, 5.0]


def test_the_average_normalises_as_the_online_network_does(online):
    average = AssignmentNetwork(online)
    online.mean.fill_(0.25)
    average.update(online, 0.9)
    assert torch.equal(average.network.mean, online.mean) and average.network.mean[0] == 0.25
    assert average.network.mean is not online.mean


def test_momentum_of_the_paper_converges_slowly(online):
    average = AssignmentNetwork(online)
    with torch.no_grad():
        average.network.classifier.weight.zero_()
        online.classifier.weight.fill_(1.0)
    for _ in range(100):
        average.update(online, 0.9994)
    expected = torch.full_like(online.classifier.weight, 1 - 0.9994**100)
    torch.testing.assert_close(average.network.classifier.weight, expected, rtol=1e-4, atol=0)


def test_stays_in_evaluation_mode(online):
    holder = torch.nn.Sequential(AssignmentNetwork(online))
    average = holder[0]
    holder.train()
    average.train()
    assert not any(module.training for module in average.modules())
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    first, second = average(images), average(images)
    assert torch.equal(first.seg, second.seg)  # no dropout
    assert not first.seg.requires_grad
    online.train()
    assert not torch.equal(online(images).seg, online(images).seg)


def test_checkpoints_are_those_of_the_plain_network(online):
    average = AssignmentNetwork(online)
    with torch.no_grad():
        online.decoder.conv8.weight.fill_(3.0)
    average.load_state_dict(online.state_dict())
    assert (average.network.decoder.conv8.weight == 3.0).all()
    online.load_state_dict(average.state_dict())


def test_rejects_nonsense(online):
    average = AssignmentNetwork(online)
    for momentum in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="momentum"):
            average.update(online, momentum)
    other = CoSANetwork(3, "vit_tiny_patch16_224", {"depth": 3})
    with pytest.raises(ValueError, match="architecture"):
        average.update(other, 0.5)


def test_what_autocast_would_cast_is_kept_cast(online):
    images = torch.rand(2, 3, 32, 32)
    plain, cast = AssignmentNetwork(online), AssignmentNetwork(online, torch.bfloat16)
    assert cast.state_dict().keys() == plain.state_dict().keys()
    assert [p.dtype for p in cast.parameters()] == [p.dtype for p in plain.parameters()]
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            expected, found = plain(images), cast(images)
        for name, value in vars(expected).items():
            assert value is None or torch.equal(getattr(found, name), value), name
        with torch.no_grad():
            for parameter in online.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        for average in (plain, cast):
            average.update(online, 0.5)
    assert torch.equal(cast(images).seg, plain(images).seg), "without autocast in full precision"
    lower = [p for p in cast.called.parameters() if p.dtype == torch.bfloat16]
    products = [m for m in cast.called.encoder.modules() if isinstance(m, torch.nn.Linear)]
    assert len(lower) > 2 * len(products) - 1
    assert cast.called.classifier.weight.dtype == cast.called.decoder.conv8.weight.dtype
    assert cast.called.classifier.weight is cast.network.classifier.weight
