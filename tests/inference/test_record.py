"""By what results are known in their folder."""

import hashlib

import pytest
import torch

from cosa.checkpoint import TrainedNetwork
from cosa.config import from_dict
from cosa.inference.record import weights_digest
from tests.helpers.tiny import tiny_tree


def network(normalization):
    torch.manual_seed(0)
    config = from_dict(tiny_tree(model={"normalization": normalization}))
    return TrainedNetwork(config, ["cat"], [(0, 0, 0), (255, 0, 0)], (0.5, 0.5), 48)


def digest_of(tensors):
    """As it was made when the network did not hold its normalisation."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def test_results_of_earlier_versions_are_still_known():
    trained = network("imagenet")
    weights = {k: v for k, v in trained.state_dict().items() if k not in ("mean", "std")}
    assert weights_digest(trained) == digest_of(weights)


@pytest.mark.parametrize("normalization", ["encoder", [[0.5] * 3, [0.25] * 3]])
def test_another_normalisation_makes_other_results(normalization):
    trained = network(normalization)
    assert weights_digest(trained) == digest_of(trained.state_dict())
    assert weights_digest(trained) != weights_digest(network("imagenet"))
