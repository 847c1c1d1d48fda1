"""A tiny ViT that learns from a CNN of random weights, on generated pictures."""

from __future__ import annotations

import json
import re

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from cosa.config import from_dict, load_config
from cosa.core.device import choose_autocast
from cosa.core.errors import UserError
from cosa.distill import fit, networks
from cosa.distill.command import main, parse
from cosa.training.build import build_cotraining
from tests.helpers.tiny import ROOT, tiny_tree


def figures(printed):
    """Steps, loss and both explained percentages of the last line."""
    found = re.search(r"safetensors: (\d+) steps, loss (\S+), of .*: (\S+) %, .* (\S+) %$",
                      printed.splitlines()[-1])
    return int(found[1]), *(float(found[number]) for number in (2, 3, 4))


def test_the_student_learns_and_its_file_starts_a_training(arguments, options, tmp_path, capsys):
    assert main([*arguments, "--steps", "2"]) == 0
    path = tmp_path / "student.safetensors"
    path.unlink()
    before = figures(capsys.readouterr().out)
    assert main([*arguments, "--steps", "120", "--lr", "3e-3"]) == 0
    printed = capsys.readouterr().out
    after = figures(printed)
    assert (before[0], after[0]) == (2, 120)
    assert "22 photographs to learn from, 2 held out; on the CPU in float32" in printed
    assert after[1] < before[1] - 1
    assert after[2] > max(before[2], 0) + 10 and after[3] > before[3] + 10

    config = from_dict(tiny_tree(model={
        "encoder": "vit_tiny_patch16_224", "encoder_options": options, "pretrained": True,
        "weights": str(path), "aux_layer": -1, "early_layer": -1,
    }))
    device = torch.device("cpu")
    network = build_cotraining(config, 2, device, choose_autocast(device)).online
    written = load_file(path)
    mine = network.encoder.state_dict()
    assert written.keys() == mine.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in mine.items())


def test_the_file_says_how_it_was_made_and_not_of_what(
    arguments, options, photos, tmp_path, capsys
):
    assert main([*arguments, "--steps", "3", "--seed", "5", "--lr", "2e-4"]) == 0
    _, loss, *explained = figures(capsys.readouterr().out)
    with safetensors.safe_open(tmp_path / "student.safetensors", framework="pt") as file:
        text = file.metadata()["cosa"]
    about = json.loads(text)
    shares = [about.pop("explained_variance"), about.pop("early_explained_variance")]
    assert about == {
        "program": "cosa.distill", "photographs": 22, "student": "vit_tiny_patch16_224",
        "student_options": options, "teacher": "resnet10t", "steps": 3, "minutes": None,
        "crop": 32, "batch": 8, "mix": 0.5, "lr": 2e-4, "seed": 5, "loss": loss, "early_layer": 0,
    }
    assert [100 * share for share in shares] == pytest.approx(explained, abs=0.06)
    assert str(photos) not in text and str(tmp_path) not in text and "/" not in text


def test_the_seed_decides(arguments, tmp_path):
    def weights(seed):
        path = tmp_path / "student.safetensors"
        path.unlink(missing_ok=True)
        assert main([*arguments, "--steps", "3", "--seed", seed]) == 0
        return path.read_bytes()

    first = weights("1")
    assert weights("1") == first
    assert weights("2") != first


def test_minutes_end_a_training(arguments, tmp_path, capsys):
    assert main([*arguments, "--minutes", "0.03"]) == 0
    steps = figures(capsys.readouterr().out)[0]
    assert steps >= 1
    with safetensors.safe_open(tmp_path / "student.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["cosa"])
    assert (about["minutes"], about["steps"]) == (0.03, steps)


@pytest.mark.parametrize("length, words", [
    ([], "one of the arguments --steps --minutes is required"),
    (["--steps", "3", "--minutes", "1"], "--minutes: not allowed with argument --steps"),
    (["--minutes", "0"], "0: it must lie in 0.001..1000000"),
])
def test_steps_or_minutes_are_given(arguments, length, words, capsys):
    with pytest.raises(SystemExit) as caught:
        parse([*arguments, *length])
    assert caught.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(("more", "message"), [
    (["--crop", "40"], "--crop 40 must be a multiple of the student's stride, 16, and at least 32"),
    (["--crop", "16"], "--crop 16 must be .* at least 32"),
    (["--student-options", '{"patch_size": [16, 8]}'], "it has 2x4 positions for 32x32 pixels"),
    (["--student-options", '{"img_size": 1}'], "cannot be taught with these --student-options"),
    (["--steps", "1", "--lr", "1e30"], "after 1 steps is not finite: lower --lr"),
    (["--student", "vit_tinny"], "--student: .*vit_tinny is not a model of timm"),
    (["--student", "resnet10t", "--student-options", "{}"],
     "--student: resnet10t is no plain ViT: choose one"),
    (["--student-options", '{"depth": "x"}'], "--student: model.encoder_options.depth must be"),
    (["--teacher", "nothing"], "--teacher: .*nothing is not a model of timm"),
    (["--teacher", "mobilenetv3_small_050", "--teacher-weights", "none.pth"],
     "--teacher: the weight file none.pth does not exist"),
    (["--device", "cuda:99"], "cuda:99"),
    (["--lr", "1e30"], "the loss is not finite in steps 1 to 9: lower --lr"),
    (["--output", "a.pth"], "a.pth must end with .safetensors"),
    (["--output", "none/of/this.safetensors/"], "exists|cannot write"),
])
def test_mistakes_are_told_in_a_sentence(arguments, more, message, tmp_path, monkeypatch):
    if "none/of/this.safetensors/" in more:
        (tmp_path / "none").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        main([*arguments, "--steps", "9", *more])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.safetensors"))


def test_too_little_time_is_told(arguments, tmp_path):
    with pytest.raises(UserError, match="--minutes 0.001 were over before the first step: give"):
        main([*arguments, "--minutes", "0.001"])
    assert not list(tmp_path.iterdir())


def test_encoders_of_two_strides_are_refused(arguments, monkeypatch):
    monkeypatch.setattr(fit, "load_encoder_weights", lambda *_: "")
    with pytest.raises(UserError, match="has a position for 32 pixels along each side, .* for 16"):
        main([*arguments, "--steps", "9", "--teacher", "pvt_v2_b0"])


def test_an_older_file_is_kept(arguments, tmp_path):
    (tmp_path / "student.safetensors").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        main([*arguments, "--steps", "9"])
    assert (tmp_path / "student.safetensors").read_text() == "mine"


@pytest.mark.parametrize("text", ["{depth: 6}", "[6]", "[" * 100_000, f'{{"depth": {"1" * 5000}}}'])
def test_options_are_a_json_object(arguments, text, capsys):
    with pytest.raises(SystemExit) as caught:
        parse([*arguments, "--steps", "9", "--student-options", text])
    told = capsys.readouterr().err
    assert caught.value.code == 2 and "is no JSON" in told and len(told) < 2000


def test_an_interruption_leaves_nothing(arguments, tmp_path, monkeypatch, capsys):
    calls = []

    def interrupted(found, wanted):
        calls.append(found)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return (found.final - wanted.final).square().mean()

    monkeypatch.setattr(fit, "loss_of", interrupted)
    assert main([*arguments, "--steps", "9"]) == 130
    path = tmp_path / "student.safetensors"
    assert capsys.readouterr().err.endswith(f"interrupted: {path} is not written\n")
    assert not list(tmp_path.iterdir())


def test_the_configuration_of_a_student_reads_what_it_was_taught():
    model = load_config(ROOT / "configs/photographs_vit.yaml").model
    student = networks.NormalizedEncoder(model.encoder, model.encoder_options)
    # The early map is that of the last frozen block; the stem is a layer, too.
    assert model.early_layer == student.reader.early_layer == model.freeze_layers - 2
    taught_by = load_config(ROOT / "configs/photographs.yaml").model
    assert (taught_by.encoder, taught_by.early_layer) == (
        parse(["photos", "--output", "x.safetensors", "--steps", "1"]).teacher,
        networks.EARLY_STAGE,
    )


def test_a_student_that_is_still_to_be_made_is_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "student.safetensors"
    config = load_config(ROOT / "configs/photographs_vit.yaml", [f"model.weights={weights}"])
    device = torch.device("cpu")
    with pytest.raises(UserError, match="student.safetensors does not exist: .*cosa.distill"):
        build_cotraining(config, 2, device, choose_autocast(device))
