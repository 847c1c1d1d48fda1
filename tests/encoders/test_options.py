import importlib.metadata
import re

import pytest
import torch

from cosa.core.errors import UserError
from cosa.encoders.build import build_encoder
from cosa.encoders.options import COUNTS, NUMBERS, OPTIONS, SWITCHES, WORDS
from tests.helpers.tiny import ROOT, TINY

NAME, SHAPE = TINY["model"]["encoder"], TINY["model"]["encoder_options"]


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


@pytest.mark.parametrize("name", [
    "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable",
    "exportable", "no_jit", "device", "dtype", "block_fn", "weight_init", "kwargs", "banana", "",
])
def test_an_option_that_is_none_of_the_shape_is_refused(tmp_path, name):
    torch.save(Payload(), tmp_path / "second.pth")
    with pytest.raises(UserError, match=rf"model\.encoder_options\.{name} is none of the options"):
        build_encoder(NAME, {**SHAPE, name: str(tmp_path / "second.pth")})
    assert not Payload.ran


@pytest.mark.parametrize("options, told", [
    ({"depth": "4"}, r"depth must be .*int.*, not '4'"),
    ({"depth": True}, "depth must be"),
    ({"depth": 10**9}, "depth must be .*, not 1000000000"),
    ({"depth": 2.5}, "depth must be"),
    ({"num_heads": [1, [2, "x"]]}, r"num_heads\[1\]\[1\] must be"),
    ({"mlp_ratio": float("nan")}, "mlp_ratio must be"),
    ({"mlp_ratio": {"a": 1}}, "mlp_ratio must be"),
    ({"qkv_bias": 1}, "qkv_bias must be"),
    ({"norm_layer": torch.nn.Identity}, "norm_layer must be"),
    ({"num_classes": 3}, "num_classes is none of the options"),
])
def test_values_are_plain_and_of_their_kind(options, told):
    with pytest.raises(UserError, match=told) as caught:
        build_encoder(NAME, SHAPE | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["local-dir:", "hf-hub:", "hf_hub:", "", "resnet18.x/"])
def test_a_name_makes_timm_read_nothing(tmp_path, prefix):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    with pytest.raises(UserError, match="is not a model of timm"):
        build_encoder(f"{prefix}{tmp_path}", {})


def test_the_lists_have_each_option_once():
    assert len(OPTIONS) == sum(map(len, (COUNTS, NUMBERS, SWITCHES, WORDS)))


def test_timm_reads_weights_as_data():
    """Older versions than the least that is asked for unpickle what they read."""
    least = re.search(r"timm>=([\d.]+)", (ROOT / "requirements.txt").read_text())[1]
    numbers = [tuple(map(int, v.split(".")[:3])) for v in (
        "1.0.26", least, importlib.metadata.version("timm"))]
    assert numbers == sorted(numbers)
