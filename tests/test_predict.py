import pytest
import torch
import torch.nn.functional as F

from cosa.ema import AssignmentNetwork
from cosa.network import CoSANetwork, NetworkOutput
from cosa.predict import MAPS, believed, multi_scale, scaled_size, strongest

SCALES = (1.0, 0.5, 1.5)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    return CoSANetwork(3, "vit_tiny_patch16_224", options, decoder_width=8).eval()


def bilinear(maps, size):
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def naive(network, images, scales, flip, size):
    """The teacher pass one forward at a time, every map resized before anything is fused."""
    cams = {"cam": 0.0, "aux_cam": 0.0}
    seg = 0.0
    for scale in scales:
        sides = [max(8, round(side * scale / 8 + 1e-9) * 8) for side in images.shape[-2:]]
        scaled = bilinear(images, sides)
        straight = network(scaled)
        views = {k: [bilinear(getattr(straight, k), size)] for k in (*cams, "seg")}
        if flip:
            mirrored = network(scaled.flip(-1))
            for key, maps in views.items():
                maps.append(bilinear(getattr(mirrored, key), size).flip(-1))
        for key in cams:
            cams[key] = cams[key] + torch.stack(views[key]).amax(0).relu()
        seg = seg + torch.stack(views["seg"]).sum(0)
    for key, cam in cams.items():
        low, high = cam.amin((2, 3), keepdim=True), cam.amax((2, 3), keepdim=True)
        cams[key] = ((cam - low) / (high - low)).nan_to_num(0.0)  # a map may be all 0
    return cams["cam"], cams["aux_cam"], seg


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("scales", [SCALES, (1.0,), (0.75,)])
@pytest.mark.parametrize(
    ("size", "out"), [((32, 48), None), ((37, 21), None), ((32, 32), (50, 9))]
)
def test_against_the_naive_form(network, scales, flip, size, out):
    images = torch.randn(2, 3, *size)
    prediction = multi_scale(network, images, scales, flip, size=out)
    with torch.no_grad():
        cam, aux_cam, seg = naive(network, images, scales, flip, out or size)
    # the normalised maps divide by the range of each map, hence the tolerance
    torch.testing.assert_close(prediction.cam, cam, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prediction.aux_cam, aux_cam, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prediction.seg, seg, atol=1e-5, rtol=1e-4)


def test_ranges_and_types(network):
    prediction = multi_scale(network, torch.randn(2, 3, 40, 24))
    assert prediction.cam.shape == prediction.aux_cam.shape == (2, 3, 40, 24)
    assert prediction.seg.shape == (2, 4, 40, 24)
    for cam in (prediction.cam, prediction.aux_cam):
        assert cam.min() >= 0 and cam.max() <= 1
        assert cam.amax((2, 3)).min() > 0.999  # every class reaches 1
    for maps in vars(prediction).values():
        assert maps.dtype == torch.float32 and not maps.requires_grad


def test_flipped_images_give_flipped_maps(network):
    images = torch.randn(1, 3, 32, 40)
    straight, mirrored = multi_scale(network, images), multi_scale(network, images.flip(-1))
    for name in MAPS:
        other = getattr(mirrored, name).flip(-1)
        torch.testing.assert_close(getattr(straight, name), other, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(straight.logits, mirrored.logits)
    straight = multi_scale(network, images, flip=False)
    mirrored = multi_scale(network, images.flip(-1), flip=False)
    assert not torch.allclose(straight.seg, mirrored.seg.flip(-1), atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (33, 3)])
def test_images_of_any_size(network, size):
    prediction = multi_scale(network, torch.randn(1, 3, *size))
    assert prediction.seg.shape == (1, 4, *size)
    assert all(maps.isfinite().all() for maps in vars(prediction).values())


def test_scaled_sizes():
    assert scaled_size((448, 448), 0.75, 16) == (336, 336)
    assert scaled_size((448, 300), 1.0, 16) == (448, 304)  # 18.75 patches
    assert scaled_size((24, 40), 0.5, 16) == (16, 16)  # 0.75 and 1.25 patches
    assert scaled_size((5, 40), 0.5, 16) == (16, 16)
    assert scaled_size((40, 56), 1.0, 16) == (48, 64)  # halves are rounded up


class Recorder:
    """A stand-in network that answers with hand-made maps and keeps what it was given."""

    stride = 4

    def __init__(self, cam):
        self.cam, self.seen = cam, []

    def __call__(self, images):
        self.seen.append(images)
        cam = self.cam.expand(images.shape[0], -1, -1, -1)
        zeros = torch.zeros(images.shape[0], 2)
        scores = len(self.seen) * images.mean((2, 3))[:, :2]
        return NetworkOutput(scores, zeros, cam, -cam, torch.cat([cam, -cam], 1), cam)


def test_by_hand():
    cam = torch.tensor([[[[-1.0, 3.0], [0.5, 2.0]]]])
    recorder = Recorder(cam)
    images = torch.randn(1, 3, 8, 8)
    prediction = multi_scale(recorder, images, (1.0, 1.0), True, size=(2, 2))
    assert torch.equal(recorder.seen[0], torch.cat([images, images.flip(-1)]))  # not resampled
    # max of the map and its mirror image: rows (3, 3) and (2, 2); twice, then to [0, 1]
    expected = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    torch.testing.assert_close(prediction.cam, expected)
    # the negated map: rows (1, 1) and (-0.5, -0.5), of which the ReLU leaves (0, 0)
    torch.testing.assert_close(prediction.aux_cam, expected)
    # map plus mirror image: 2 and 2.5 in the rows, over two scales
    expected = torch.tensor([[4.0, 4.0], [5.0, 5.0]])
    torch.testing.assert_close(prediction.seg, torch.stack([expected, -expected])[None])
    assert torch.equal(recorder.cam, cam)


@pytest.mark.parametrize("flip", [True, False])
def test_scores_are_the_mean_of_all_passes(flip):
    images = torch.randn(3, 3, 8, 8)
    prediction = multi_scale(Recorder(torch.zeros(1, 1, 2, 2)), images, (1.0,) * 4, flip)
    # The first to the fourth pass give their number times the mean colour, 2.5 times on average.
    torch.testing.assert_close(prediction.logits, 2.5 * images.mean((2, 3))[:, :2])


def test_the_score_of_a_single_pass_is_the_networks_own(network):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(images).logits
    assert torch.equal(multi_scale(network, images, (1.0,), False).logits, expected)


LOGIT = torch.logit(torch.tensor([0.9, 0.5, 0.2, 0.05]))


@pytest.mark.parametrize(("least", "expected"), [
    (0.0, [1, 1, 1, 1]), (0.06, [1, 1, 1, 0]), (0.3, [1, 1, 0, 0]), (0.5, [1, 1, 0, 0]),
    (0.6, [1, 0, 0, 0]), (0.95, [1, 0, 0, 0]), (1.0, [1, 0, 0, 0]),
])
def test_believed_classes_by_hand(least, expected):
    found = believed(LOGIT, least)
    assert found.dtype == torch.bool and found.int().tolist() == expected
    # Of a batch, each image by itself: in this order the second one's likeliest is another class.
    assert torch.equal(believed(torch.stack([LOGIT, LOGIT.flip(0)]), least),
                       torch.stack([found, found.flip(0)]))


def test_the_likeliest_classes_are_believed_however_unlikely():
    assert believed(torch.tensor([-9.0, -5.0, -5.0]), 0.9).tolist() == [False, True, True]
    assert believed(torch.full((3,), -1e9), 0.0).all()


def test_the_strongest_of_the_allowed_classes_by_hand():
    seg = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 3.0, 2.0, 0.0], [5.0, 4.0, 2.0, 1.0]])[:, None]
    for allowed, expected in (
        ([1, 1], [2, 2, 0, 2]), ([1, 0], [0, 1, 0, 0]), ([0, 1], [2, 2, 0, 2]), ([0, 0], [0] * 4),
    ):
        assert strongest(seg, torch.tensor(allowed) > 0).tolist() == [expected]


def test_every_scale_counts_in_both_cams(network):
    images = torch.randn(1, 3, 32, 32)
    one, two = multi_scale(network, images, (1.0,)), multi_scale(network, images, (0.5, 1.0))
    assert not torch.allclose(one.cam, two.cam, atol=1e-3)
    assert not torch.allclose(one.aux_cam, two.aux_cam, atol=1e-3)


def test_order_of_the_scales_does_not_matter(network):
    images = torch.randn(1, 3, 32, 32)
    first, second = (multi_scale(network, images, s) for s in (SCALES, SCALES[::-1]))
    for name, maps in vars(first).items():
        torch.testing.assert_close(maps, getattr(second, name), atol=1e-4, rtol=1e-4)


def test_assignment_network_and_autocast(network):
    images = torch.randn(1, 3, 32, 32)
    expected = multi_scale(network, images)
    prediction = multi_scale(AssignmentNetwork(network), images)
    assert torch.equal(prediction.seg, expected.seg)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = multi_scale(network, images)
    assert all(maps.dtype == torch.float32 for maps in vars(prediction).values())
    assert (prediction.seg - expected.seg).abs().max() < 0.1 * expected.seg.abs().max()


@pytest.mark.parametrize("wanted", [("cam",), ("aux_cam", "seg"), {"seg"}])
def test_only_the_wanted_maps_are_fused(network, wanted):
    images = torch.randn(1, 3, 32, 32)
    every, some = multi_scale(network, images), multi_scale(network, images, maps=wanted)
    for name in MAPS:
        if name in wanted:
            assert torch.equal(getattr(some, name), getattr(every, name))
        else:
            assert getattr(some, name) is None
    assert torch.equal(some.logits, every.logits), "scores are to be had in any case"


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)])
def test_rejects_impossible_scales(network, scales):
    with pytest.raises(ValueError, match="scales"):
        multi_scale(network, torch.zeros(1, 3, 16, 16), scales)
