"""The certainty of a mask: numbers that can be computed by hand, and what may not change it."""

import numpy as np
import pytest
import torch

import cosa
from cosa.core.errors import UserError
from cosa.inference import outputs
from cosa.inference.certainty import TEMPERATURE, Promise, certainty
from cosa.inference.jobs import plan
from cosa.inference.pipeline import segment_files
from cosa.inference.settings import CrfSettings, Settings
from tests.helpers.inference import SIZE, save_smooth


def logits(probabilities):
    """Scores (K, h, w) whose softmax at the temperature is (h, w, K)."""
    return TEMPERATURE * torch.tensor(probabilities).log().movedim(-1, 0)


def test_by_hand():
    # Four positions, three classes; the last is the largest nowhere.
    scores = logits([[[0.8, 0.1, 0.1], [0.6, 0.2, 0.2]], [[0.3, 0.5, 0.2], [0.1, 0.6, 0.3]]])
    background = (0.8 + 0.6) / (2 + 0.3 + 0.1)
    first = (0.5 + 0.6) / (2 + 0.1 + 0.2)
    for presence, missed in ((0.0, 0.3), (0.5, 1 - 0.7 * 0.5), (1.0, 1.0)):
        found = certainty(scores, torch.tensor([1.0, 1.0, presence]))
        assert found == pytest.approx((background + first) / (2 + missed), abs=1e-6)
    # A class that is there counts whole, whatever the class score says.
    unlikely = certainty(scores, torch.tensor([1.0, 0.0, 0.5]))
    assert unlikely == certainty(scores, torch.tensor([1.0, 1.0, 0.5]))


def test_what_is_not_in_doubt_is_certain():
    one_hot = torch.full((3, 4, 4), -50.0)
    one_hot[0, :2] = one_hot[2, 2:] = 50.0
    assert certainty(one_hot, torch.tensor([1.0, 0.0, 1.0])) == pytest.approx(1)
    assert certainty(one_hot, torch.tensor([1.0, 1.0, 1.0])) == pytest.approx(2 / 3)
    assert certainty(one_hot[:1], torch.ones(1)) == 1
    nothing = certainty(torch.zeros(3, 4, 4), torch.tensor([1.0, 0.0, 0.0]))
    assert nothing == pytest.approx((1 / 3) / (1 + 2 / 3))


def test_passes_count_as_their_mean_and_parts_as_the_whole():
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(5, 8, 6, generator=generator)
    presence = torch.rand(5, generator=generator)
    whole = certainty(scores, presence)
    assert 0 < whole < 1
    assert certainty(4 * scores, presence, 4) == pytest.approx(whole, abs=1e-6)
    promise = Promise(presence)
    for part in scores.split(3, dim=1):
        promise.add(part)
    assert promise.value() == pytest.approx(whole, abs=1e-6)
    assert certainty(scores.half().double(), presence) == pytest.approx(whole, abs=1e-3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        save_smooth(folder / f"{seed}.png", (40 + 20 * seed, 30), seed=seed)
    return folder


def outcomes(weights, photos, folder, labels_of=None, save=("mask",), **settings):
    network, settings = cosa.load(weights), Settings(size=SIZE, **settings)
    jobs = plan(str(photos), folder, save)
    return [*segment_files(network, jobs, settings, save=save, labels_of=labels_of)]


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_every_way_to_a_mask_has_it(tmp_path, weights, photos, mode):
    views = dict(mode=mode, window=SIZE, stride=SIZE // 2, scales=(1.0, 0.5), flip=True)
    plain = [o.certainty for o in outcomes(weights, photos, tmp_path / "a", **views)]
    assert len(set(plain)) == 3 and all(0 < value < 1 for value in plain)
    # It is the network's, which a CRF does not make more certain.
    crf = CrfSettings(iterations=2, gaussian=(1.0, 1.0), bilateral=(4.0, 20.0, 10.0))
    refined = outcomes(weights, photos, tmp_path / "b", crf=crf, **views)
    assert [o.certainty for o in refined] == plain
    cams = outcomes(weights, photos, tmp_path / "c", save=("cam",), **views)
    assert [o.certainty for o in cams] == [None] * 3


def test_labels_leave_less_in_doubt(tmp_path, weights, photos):
    (free, *_) = outcomes(weights, photos, tmp_path / "a")
    (none, *_) = outcomes(weights, photos, tmp_path / "b", lambda name: [])
    (one, *_) = outcomes(weights, photos, tmp_path / "c", lambda name: [1])
    assert none.certainty == 1 and 0 < one.certainty < 1 and one.certainty != free.certainty


def test_it_is_saved_and_read(tmp_path, weights, photos):
    for outcome in outcomes(weights, photos, tmp_path, save=("certainty",)):
        path = outcome.job.results["certainty"]
        assert outputs.read_certainty(path) == outcome.certainty and outputs.fits(outcome.job)
    np.savez(path, certainty=np.array(1.5))
    for content in (path.read_bytes(), b"", b"PK\3\4"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            outputs.read_certainty(path)
