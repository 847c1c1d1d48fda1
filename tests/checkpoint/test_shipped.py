"""The network that comes with the project, and the program that wrote it."""

from __future__ import annotations

import pytest
import torch

import cosa
from cosa.checkpoint import load, save_weights
from cosa.checkpoint.__main__ import main
from cosa.config import DataConfig, load_config, to_dict
from cosa.core.errors import UserError
from tests.helpers.tiny import ROOT

SHIPPED = ROOT / "weights" / "photographs.safetensors"


def test_the_shipped_network_loads_and_segments():
    assert SHIPPED.stat().st_size < 12e6
    network = cosa.load(SHIPPED)
    assert len(network.classes) == 20 and network.classes[14] == "person"
    assert all(tensor.dtype == torch.float32 for tensor in network.parameters())
    with torch.no_grad():
        output = network(torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(0)))
    assert output.seg.shape == (1, 21, 6, 4) and output.seg.isfinite().all()
    config = load_config(ROOT / "configs" / "photographs.yaml")
    assert network.config.model == config.model, "the card says that it is of this configuration"
    assert network.config.data == DataConfig(), "whose images these were is nobody's business"


@pytest.fixture
def checkpoint(tmp_path):
    config = to_dict(load_config(None, [
        "model.encoder=vit_tiny_patch16_224", "model.aux_layer=0", "data.root=/home/somebody/x",
        "model.encoder_options={patch_size: 8, embed_dim: 12, depth: 2, num_heads: 2}",
        "model.decoder_width=4",
    ]))
    torch.manual_seed(0)
    network = cosa.checkpoint.build_network(config, 2)
    path = tmp_path / "best.pth"
    save_weights(path, network, config=config, classes=["cat", "dog"],
                 palette=[(0, 0, 0), (128, 0, 0), (0, 128, 0)], thresholds=(0.25, None))
    return path


@pytest.mark.parametrize("half", [False, True])
def test_weights_for_others(checkpoint, tmp_path, half):
    output = tmp_path / "new" / "pets.safetensors"
    assert main([str(checkpoint), str(output), *["--half"] * half]) == 0
    before, after = load(checkpoint), load(output)
    assert after.classes == ("cat", "dog") and after.thresholds == (0.25, None)
    assert after.palette == before.palette and after.config.model == before.config.model
    assert b"somebody" not in output.read_bytes()
    for name, tensor in before.state_dict().items():
        expected = tensor.half().float() if half else tensor
        torch.testing.assert_close(after.state_dict()[name], expected, rtol=0, atol=0)


def test_nothing_is_overwritten(checkpoint, tmp_path):
    output = tmp_path / "pets.safetensors"
    output.write_bytes(b"mine")
    with pytest.raises(UserError, match="pets.safetensors exists already: choose another name"):
        main([str(checkpoint), str(output)])
    assert output.read_bytes() == b"mine"
    with pytest.raises(UserError, match=r"pets.pth must end with .safetensors"):
        main([str(checkpoint), str(tmp_path / "pets.pth")])
