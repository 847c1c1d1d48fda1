import pytest
import torch

from cosa.affinity import affinity
from cosa.core.device import choose_autocast
from cosa.distill import networks
from cosa.network import CoSANetwork

VIT = "vit_tiny_patch16_224"


def test_distance_by_hand():
    wanted = torch.tensor([[3.0, 4.0]])[..., None, None]
    assert float(networks.distance(wanted, wanted)) == pytest.approx(0, abs=1e-6)
    # The opposite: squares of 6 and 8, whose mean is 50, and a cosine of -1.
    assert float(networks.distance(-wanted, wanted)) == pytest.approx(52)
    across = torch.tensor([[-4.0, 3.0]])[..., None, None]
    assert float(networks.distance(across, wanted)) == pytest.approx((49 + 1) / 2 + 1)


def test_the_loss_by_hand():
    one = torch.tensor([[3.0, 4.0]])[..., None, None]
    alike = torch.tensor([[[1.0, 0.5]]])
    found = networks.Maps(-one, -one, alike)
    wanted = networks.Maps(one, one, 0 * alike)
    assert float(networks.loss_of(found, wanted)) == pytest.approx(52 + 52 / 2 + 1.25 / 2)


def test_explained_variance_by_hand():
    wanted = torch.tensor([[[[1.0, 3.0]], [[10.0, 10.0]]]])  # two channels, means 2 and 10
    assert networks.explained_variance(wanted, wanted) == 1
    means = torch.tensor([[[[2.0, 2.0]], [[10.0, 10.0]]]])
    assert networks.explained_variance(means, wanted) == 0
    half = torch.tensor([[[[1.0, 2.0]], [[10.0, 10.0]]]])
    assert networks.explained_variance(half, wanted) == pytest.approx(0.5)
    assert networks.explained_variance(0 * wanted, wanted) == pytest.approx(1 - 210 / 2)


def test_cosines_are_what_maps_are_spread_by():
    features = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    found = networks.cosines(features).clamp_min(0) ** 4
    torch.testing.assert_close(found / found.sum(2, keepdim=True), affinity((features, 4.0)))


def test_the_teachers_channels_are_standardised_and_it_is_frozen():
    torch.manual_seed(0)
    seen = networks.NormalizedEncoder("resnet10t", {}, early_layer=-3)
    images = torch.rand(5, 3, 32, 48)
    teacher = networks.Teacher(seen, choose_autocast(torch.device("cpu")), images, batch=2)
    wanted = teacher(images)
    assert wanted.final.shape == (5, teacher.widths[0], 2, 3)
    assert wanted.early.shape == (5, teacher.widths[1], 2, 3)
    assert wanted.alike.shape == (5, 6, 6)
    for found in wanted[:2]:
        assert not found.requires_grad
        assert found.mean((0, 2, 3)).abs().max() < 1e-4
        deviation = found.std((0, 2, 3))
        assert (deviation < 1.001).all() and float(deviation.median()) == pytest.approx(1, abs=1e-3)
    assert not seen.training and not any(p.requires_grad for p in seen.parameters())


def test_images_are_normalised_and_read_as_the_network_does():
    torch.manual_seed(0)
    options = {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2}
    seen = networks.NormalizedEncoder(VIT, options).eval()
    assert seen.reader.early_layer == 1
    network = CoSANetwork(1, VIT, options, aux_layer=-1, early_layer=1, cam_steps=1).eval()
    network.encoder.load_state_dict(seen.encoder.state_dict())
    images = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        final, early = seen(images)
        read = network.encode(images)
    assert torch.equal(final, read.final) and torch.equal(early, read.early)


@pytest.mark.parametrize("depth, early", [(1, 0), (2, 0), (6, 3), (12, 7)])
def test_the_early_block_is_at_two_thirds(depth, early):
    options = {"img_size": 32, "embed_dim": 8, "depth": depth, "num_heads": 1}
    assert networks.NormalizedEncoder(VIT, options).reader.early_layer == early


def test_the_early_maps_teach_the_blocks_before_them_alone():
    torch.manual_seed(0)
    options = {"img_size": 32, "embed_dim": 16, "depth": 3, "num_heads": 2}
    student = networks.Student(networks.NormalizedEncoder(VIT, options), (5, 7))
    found = student(torch.rand(2, 3, 32, 32))
    assert (found.final.shape[1], found.early.shape[1]) == (5, 7)
    wanted = networks.Maps(found.final.detach(), torch.randn(2, 7, 2, 2), torch.rand(2, 4, 4))
    networks.loss_of(found, wanted).backward()

    def learns(module):
        return any(p.grad is not None and bool(p.grad.abs().max() > 1e-6)
                   for p in module.parameters())

    blocks = student.seen.encoder.blocks
    assert [learns(block) for block in blocks] == [True, True, False]
    assert learns(student.early_head) and not learns(student.head)
    # With which positions look alike alone, the blocks learn and the head does not.
    student.zero_grad()
    found = student(torch.rand(2, 3, 32, 32))
    wanted = networks.Maps(found.final.detach(), found.early.detach(), torch.rand(2, 4, 4))
    networks.loss_of(found, wanted).backward()
    assert learns(blocks[0]) and not learns(student.early_head)
