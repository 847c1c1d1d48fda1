"""Which mean and deviation the encoders' weights were trained with."""

import pytest

from cosa.core.errors import UserError
from cosa.encoders import normalization
from cosa.encoders.normalization import IMAGENET, resolve

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

FAMILIES = {
    "vit_base_patch16_224": HALF,  # augreg
    "vit_base_patch16_224.dino": IMAGENET,
    "vit_base_patch16_224.mae": IMAGENET,
    "vit_base_patch16_siglip_224": HALF,
    "vit_base_patch16_clip_224.openai": CLIP,
    "eva02_tiny_patch14_224": CLIP,
    "vit_small_patch14_dinov2": IMAGENET,
    "vit_small_patch16_dinov3": IMAGENET,
    "deit_small_patch16_224": IMAGENET,
}


@pytest.mark.parametrize(("name", "expected"), FAMILIES.items())
def test_every_family_has_its_own(name, expected):
    assert resolve("encoder", name) == expected


def test_imagenet_is_written_out():
    assert IMAGENET == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert resolve("imagenet", "vit_base_patch16_224") == IMAGENET


def test_numbers_stand_for_themselves():
    given = [[0.1, 0.2, 0.3], [1, 0.5, 0.25]]
    assert resolve(given, "vit_base_patch16_224") == ((0.1, 0.2, 0.3), (1, 0.5, 0.25))


@pytest.mark.parametrize("known", [None, {"mean": None, "std": None}])
def test_imagenets_where_timm_knows_none(monkeypatch, known):
    config = known and type("PretrainedCfg", (), known)
    monkeypatch.setattr(normalization, "get_pretrained_cfg", lambda *_, **__: config)
    assert resolve("encoder", "vit_of_mine") == IMAGENET


@pytest.mark.parametrize("wrong", [
    "imagnet", "", [[0.5] * 3], [[0.5] * 3, [0.5] * 2], [[0.5] * 3, [0.5, 0.0, 0.5]], "enc",
])
def test_what_is_no_normalisation_is_told(wrong):
    with pytest.raises(UserError, match="model.normalization=.*encoder, imagenet, or mean"):
        resolve(wrong, "vit_base_patch16_224")
