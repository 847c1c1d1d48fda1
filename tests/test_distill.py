"""A tiny ViT that learns from a CNN of random weights, on generated pictures."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cosa import distill
from cosa.config import from_dict
from cosa.core.device import choose_autocast
from cosa.core.errors import UserError
from cosa.encoders.build import build_encoder
from cosa.network import CoSANetwork
from cosa.training.build import build_cotraining
from tests.helpers.tiny import tiny_tree

OPTIONS = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
TEACHER = "resnet10t"


def picture(seed, size=(60, 44)):
    """Patches of colour, which a teacher of random weights tells apart."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.NEAREST)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    (folder / "nested").mkdir()
    for number in range(24):
        picture(number).save(folder / ("nested" if number % 2 else "") / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def teacher_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(build_encoder(TEACHER, {}).state_dict(), path)
    return path


@pytest.fixture
def arguments(photos, teacher_weights, tmp_path):
    return [str(photos), "--output", str(tmp_path / "student.safetensors"),
            "--student-options", json.dumps(OPTIONS), "--teacher", TEACHER,
            "--teacher-weights", str(teacher_weights), "--crop", "32", "--batch", "8",
            "--device", "cpu", "--workers", "0", "--keep-decoded"]


def figures(printed):
    """Loss and explained percentage of the last line."""
    found = re.search(r"loss (\S+), (\S+) % of the variance", printed.splitlines()[-1])
    return float(found[1]), float(found[2])


def test_the_student_learns_and_its_file_starts_a_training(arguments, tmp_path, capsys):
    assert distill.main([*arguments, "--steps", "2"]) == 0
    path = tmp_path / "student.safetensors"
    path.unlink()
    before = figures(capsys.readouterr().out)
    assert distill.main([*arguments, "--steps", "80"]) == 0
    printed = capsys.readouterr().out
    after = figures(printed)
    assert "22 photographs to learn from, 2 held out; on the CPU in float32" in printed
    assert after[0] < before[0] - 0.3 and after[1] > max(before[1], 0) + 10

    config = from_dict(tiny_tree(model={
        "encoder": "vit_tiny_patch16_224", "encoder_options": OPTIONS, "pretrained": True,
        "weights": str(path), "aux_layer": -1, "early_layer": -1,
    }))
    device = torch.device("cpu")
    network = build_cotraining(config, 2, device, choose_autocast(device)).online
    written = load_file(path)
    mine = network.encoder.state_dict()
    assert written.keys() == mine.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in mine.items())


def test_the_file_says_how_it_was_made_and_not_of_what(arguments, photos, tmp_path, capsys):
    assert distill.main([*arguments, "--steps", "3", "--seed", "5", "--lr", "2e-4"]) == 0
    loss, explained = figures(capsys.readouterr().out)
    with safetensors.safe_open(tmp_path / "student.safetensors", framework="pt") as file:
        text = file.metadata()["cosa"]
    about = json.loads(text)
    assert about == {
        "program": "cosa.distill", "photographs": 22, "student": "vit_tiny_patch16_224",
        "student_options": OPTIONS, "teacher": TEACHER, "steps": 3, "crop": 32, "batch": 8,
        "lr": 2e-4, "seed": 5, "loss": loss, "explained_variance": about["explained_variance"],
    }
    assert 100 * about["explained_variance"] == pytest.approx(explained, abs=0.06)
    assert str(photos) not in text and str(tmp_path) not in text and "/" not in text


def test_the_seed_decides(arguments, tmp_path):
    def weights(seed):
        path = tmp_path / "student.safetensors"
        path.unlink(missing_ok=True)
        assert distill.main([*arguments, "--steps", "3", "--seed", seed]) == 0
        return path.read_bytes()

    first = weights("1")
    assert weights("1") == first
    assert weights("2") != first


def test_one_in_twenty_is_held_out_by_sorted_name(tmp_path):
    for number in range(41):
        picture(number, (8, 8)).save(tmp_path / f"{number:02}.png")
    # A folder that is given twice counts once.
    learnt, held_out = distill.find_photographs([str(tmp_path)] * 2)
    assert [path.stem for path in held_out] == ["00", "20", "40"]
    assert [path.stem for path in learnt] == [f"{n:02}" for n in range(41) if n % 20]


def test_what_cannot_be_read_is_left_out_with_a_warning_each(tmp_path, capsys):
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:90])
    learnt, held_out = distill.find_photographs([str(tmp_path)])
    assert {path.stem for path in (*learnt, *held_out)} == {"0", "1", "2"}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("warning: left out: ") for line in lines)
    assert "cut.png" in lines[0] and "empty.jpg is empty" in lines[1]


def test_two_photographs_are_needed(tmp_path):
    picture(0).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="1 of 1 photographs can be read: give at least two"):
        distill.find_photographs([str(tmp_path)])
    with pytest.raises(UserError, match="is no folder"):
        distill.find_photographs([str(tmp_path / "a.png")])


@pytest.mark.parametrize(("more", "message"), [
    (["--crop", "40"], "--crop 40 must be a multiple of the student's stride, 16"),
    (["--student", "vit_tinny"], "--student: .*vit_tinny is not a model of timm"),
    (["--student-options", '{"depth": "x"}'], "--student: model.encoder_options.depth must be"),
    (["--teacher", "nothing"], "--teacher: .*nothing is not a model of timm"),
    (["--teacher", "mobilenetv3_small_050", "--teacher-weights", "none.pth"],
     "--teacher: the weight file none.pth does not exist"),
    (["--device", "cuda:99"], "cuda:99"),
    (["--lr", "1e30", "--steps", "9"], "the loss is not finite at step .: lower --lr"),
    (["--output", "a.pth"], "a.pth must end with .safetensors"),
    (["--output", "none/of/this.safetensors/"], "exists|cannot write"),
])
def test_mistakes_are_told_in_a_sentence(arguments, more, message, tmp_path, monkeypatch):
    if "none/of/this.safetensors/" in more:
        (tmp_path / "none").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        distill.main([*arguments, *more])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.safetensors"))


def test_encoders_of_two_strides_are_refused(arguments, monkeypatch):
    monkeypatch.setattr(distill, "load_encoder_weights", lambda *_: "")
    with pytest.raises(UserError, match="has a position for 32 pixels along each side, .* for 16"):
        distill.main([*arguments, "--teacher", "pvt_v2_b0"])


def test_an_older_file_is_kept(arguments, tmp_path):
    (tmp_path / "student.safetensors").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        distill.main(arguments)
    assert (tmp_path / "student.safetensors").read_text() == "mine"


@pytest.mark.parametrize("text", ["{depth: 6}", "[6]"])
def test_options_are_a_json_object(arguments, text, capsys):
    with pytest.raises(SystemExit):
        distill.parse([*arguments, "--student-options", text])
    assert "is no JSON" in capsys.readouterr().err


def test_an_interruption_leaves_nothing(arguments, tmp_path, monkeypatch, capsys):
    calls = []

    def interrupted(found, wanted):
        calls.append(found)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return (found - wanted).square().mean()

    monkeypatch.setattr(distill, "distance", interrupted)
    assert distill.main([*arguments, "--steps", "9"]) == 130
    path = tmp_path / "student.safetensors"
    assert capsys.readouterr().err.endswith(f"interrupted: {path} is not written\n")
    assert not list(tmp_path.iterdir())


def ramps(width, height):
    """Red tells the column, green the row, as parts of 255."""
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    pixels = np.rint(255 * np.stack([x, y, 0.5 + 0 * x], 2))
    return Image.fromarray(pixels.astype(np.uint8))


def test_crops_are_of_the_area_and_the_aspect_that_they_should(monkeypatch):
    monkeypatch.setattr(distill, "STRENGTH", 0.0)
    image, size = ramps(500, 375), 64
    shares, flips = [], 0
    for seed in range(60):
        pixels = distill.random_crop(image, np.random.default_rng(seed), size)
        assert pixels.shape == (size, size, 3) and pixels.dtype == torch.uint8
        red, green = (pixels[..., k].double() / 255 for k in (0, 1))
        across, down = red[:, -1].mean() - red[:, 0].mean(), green[-1].mean() - green[0].mean()
        assert down > 0
        flips += bool(across < 0)
        # The outermost pixels' centres lie half a pixel within the crop.
        wide, high = (float(abs(step)) * size / (size - 1) for step in (across, down))
        shares.append(wide * high)
        aspect = wide * 500 / (high * 375)
        assert 0.73 < aspect < 1.36
    assert 0.19 < min(shares) < 0.3 and 0.8 < max(shares) < 1.02
    assert 20 < flips < 40


def test_crops_are_a_function_of_the_generator():
    image = picture(0)
    first, again, other = (
        distill.random_crop(image, np.random.default_rng(seed), 32) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_colours_change_a_little():
    grey = Image.new("RGB", (50, 50), (100, 100, 100))
    seen = [int(distill.random_crop(grey, np.random.default_rng(seed), 16)[0, 0, 0])
            for seed in range(50)]
    # A factor of 1 +- 0.36; contrast and saturation of a grey picture leave it as it is.
    assert 63 <= min(seen) < 75 and 125 < max(seen) <= 137


def test_distance_by_hand():
    wanted = torch.tensor([[3.0, 4.0]])[..., None, None]
    assert float(distill.distance(wanted, wanted)) == pytest.approx(0, abs=1e-6)
    # The opposite: squares of 6 and 8, whose mean is 50, and a cosine of -1.
    assert float(distill.distance(-wanted, wanted)) == pytest.approx(52)
    across = torch.tensor([[-4.0, 3.0]])[..., None, None]
    assert float(distill.distance(across, wanted)) == pytest.approx((49 + 1) / 2 + 1)


def test_explained_variance_by_hand():
    wanted = torch.tensor([[[[1.0, 3.0]], [[10.0, 10.0]]]])  # two channels, means 2 and 10
    assert distill.explained_variance(wanted, wanted) == 1
    means = torch.tensor([[[[2.0, 2.0]], [[10.0, 10.0]]]])
    assert distill.explained_variance(means, wanted) == 0
    half = torch.tensor([[[[1.0, 2.0]], [[10.0, 10.0]]]])
    assert distill.explained_variance(half, wanted) == pytest.approx(0.5)
    assert distill.explained_variance(0 * wanted, wanted) == pytest.approx(1 - 210 / 2)


def test_the_teachers_channels_are_standardised_and_it_is_frozen():
    torch.manual_seed(0)
    seen = distill.NormalizedEncoder(TEACHER, {})
    images = torch.rand(5, 3, 32, 48)
    teacher = distill.Teacher(seen, choose_autocast(torch.device("cpu")), images, batch=2)
    maps = teacher(images)
    assert maps.shape == (5, teacher.width, 2, 3) and not maps.requires_grad
    assert maps.mean((0, 2, 3)).abs().max() < 1e-4
    deviation = maps.std((0, 2, 3))
    assert (deviation < 1.001).all() and float(deviation.median()) == pytest.approx(1, abs=1e-3)
    assert not seen.training and not any(p.requires_grad for p in seen.parameters())


def test_images_are_normalised_as_the_network_does():
    torch.manual_seed(0)
    seen = distill.NormalizedEncoder("vit_tiny_patch16_224", OPTIONS).eval()
    network = CoSANetwork(1, "vit_tiny_patch16_224", OPTIONS, aux_layer=-1).eval()
    network.encoder.load_state_dict(seen.encoder.state_dict())
    images = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(seen(images), network.encode(images).final)
