"""Weights from the hub: what is fetched, from where, and one sentence where that fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import cosa
from cosa.checkpoint import load
from cosa.core import hub as module
from cosa.core.errors import UserError
from cosa.core.hub import is_model, parse_model
from cosa.encoders.build import build_encoder
from cosa.encoders.pretrained import load_encoder_weights
from cosa.export.command import default_output
from tests.helpers.hub_server import TOKEN, Repository
from tests.helpers.inference import refusal, run_main, save, write_weights
from tests.helpers.pages import page
from tests.helpers.tiny import ROOT

NAME = "hf-hub:joe/pets"
ELSEWHERE = "http://127.0.0.1:9"  # discard: closed


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("file") / "model.safetensors")


@pytest.fixture
def pets(hub, file):
    repository = hub.repositories["joe/pets"] = Repository({"model.safetensors": file.read_bytes()})
    return repository


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) for key, value in first.items())


def told(name=NAME):
    """The one sentence that loading ends with."""
    with pytest.raises(UserError) as caught:
        cosa.load(name)
    message = str(caught.value)
    assert message.startswith(name.partition("@")[0]) and "\n" not in message, message
    return message


def test_a_network_is_loaded(pets, file):
    network = cosa.load(NAME)
    assert same(network, load(file)) and network.classes == load(file).classes


def test_nothing_but_the_weights_is_fetched(pets, hub):
    pets.files |= {"pytorch_model.bin": b"x", "modeling.py": b"x", "config.json": b"{}"}
    cosa.load(NAME)
    assert hub.downloads() == {"model.safetensors"}


def test_a_revision_is_loaded_and_kept(pets, hub, file):
    commit = pets.commit
    assert same(cosa.load(f"{NAME}@{commit}"), load(file))
    pets.files["model.safetensors"] = b"another"
    pets.commits += 1
    assert "no revision" in told(f"{NAME}@{'0' * 40}")
    assert "no revision" in told(f"{NAME}@v9")


def test_the_newest_is_fetched_again(pets, file, tmp_path):
    cosa.load(NAME)
    other = write_weights(tmp_path / "other.safetensors", classes=("cat", "dog"))
    pets.files["model.safetensors"] = other.read_bytes()
    pets.commits += 1
    assert cosa.load(NAME).classes == ("cat", "dog")


def test_the_cache_serves_where_the_hub_cannot_be_reached(pets, monkeypatch, capfd):
    first = cosa.load(NAME)
    capfd.readouterr()
    monkeypatch.setattr(constants, "ENDPOINT", ELSEWHERE)
    assert same(cosa.load(NAME), first)
    note = f"note: {ELSEWHERE} cannot be reached: {NAME} is taken from the cache, as of commit "
    assert capfd.readouterr().err == f"{note}{pets.commit[:10]}\n"
    assert same(cosa.load(f"{NAME}@{pets.commit}"), first)


def test_offline_the_hub_is_not_asked(pets, hub, monkeypatch):
    first = cosa.load(NAME)
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(cosa.load(NAME), first) and not hub.asked
    assert "HF_HUB_OFFLINE forbids" in told("hf-hub:joe/cars")
    assert not hub.asked


def test_without_hub_and_cache(monkeypatch, hub):
    monkeypatch.setattr(constants, "ENDPOINT", ELSEWHERE)
    message = told()
    assert "cannot be reached" in message and "not in the cache" in message


def test_an_unknown_model(hub):
    assert "there is no such model" in told()


def test_a_private_model(pets, monkeypatch):
    pets.private = True
    assert "or it is private; correct the name, or log in (hf auth login)" in told()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert cosa.load(NAME).num_classes == 3


def test_a_gated_model(pets, hub):
    pets.gated = True
    assert f"ask at {hub.address}/joe/pets" in told()


def test_a_wrong_token(pets, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not accept the token" in told()


def test_a_model_without_safetensors_is_not_read(pets, hub):
    pets.files = {"pytorch_model.bin": b"pickle", "model.pt": b"pickle"}
    assert "it holds no model.safetensors, and no other file is read" in told()
    assert hub.downloads() == {"model.safetensors"}


@pytest.mark.parametrize("claimed", [module.MOST_WEIGHTS + 1, 10**30])
def test_a_file_that_is_too_large_is_not_fetched(pets, hub, claimed):
    pets.claimed = claimed
    assert "MB are fetched" in told()
    assert not any("/cdn/" in path for path in hub.asked)


def test_a_file_of_another_size_than_it_says(pets):
    pets.claimed = 10
    assert "did not do what was asked" in told()


def test_a_hub_that_is_broken(pets, hub):
    hub.broken = True
    assert "503" in told() and "try again later" in told()


def test_a_server_that_is_no_hub(hub):
    hub.stranger = True
    assert "check HF_ENDPOINT" in told()


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


@pytest.mark.parametrize("kind", ["pickle", "empty", "noise", "header", "encoder", "altered"])
def test_hostile_content_is_refused(pets, tmp_path, file, kind):
    path = tmp_path / "evil"
    if kind == "pickle":
        torch.save({"about": {}, "assignment": Payload()}, path)
    elif kind == "encoder":
        save_file({"a": torch.zeros(2)}, path)
    elif kind == "altered":
        path.write_bytes(file.read_bytes().replace(b"cosa-1", b"cosa-9"))
    else:
        path.write_bytes({"empty": b"", "noise": b"\x07" * 999, "header": b"\xff" * 8}[kind])
    pets.files["model.safetensors"] = path.read_bytes()
    with pytest.raises(UserError) as caught:
        cosa.load(NAME)
    assert "models--joe--pets" in str(caught.value) and "\n" not in str(caught.value)
    assert not Payload.ran


@pytest.mark.parametrize("name", [
    "hf-hub:", "hf-hub:joe", "hf-hub:joe/", "hf-hub:/pets", "hf-hub:joe/pets/more", "hf-hub:../..",
    "hf-hub:joe/..", "hf-hub:joe/a--b", "hf-hub:joe/pets@", "hf-hub:joe/pets@../../x",
    "hf-hub:joe/pe ts", "hf-hub:joe/pets\n", "hf-hub:joe/pets@a@b", "hf-hub:joe/p?x=1#y",
    "hf-hub:joe/\u0440ets", "hf-hub:joe/" + 97 * "p",
])
def test_names_that_are_none(hub, name):
    with pytest.raises(UserError, match="is no name of a model on the hub"):
        cosa.load(name)
    assert not hub.asked


def test_names():
    assert str(parse_model("hf-hub:joe/pets")) == "hf-hub:joe/pets"
    assert str(parse_model("joe/pets@refs/pr/1")) == "hf-hub:joe/pets@refs/pr/1"
    assert parse_model("joe/pets@v1.0").revision == "v1.0"
    assert is_model("hf-hub:x") and not is_model("runs/hf-hub:x") and not is_model("joe/pets")


def test_infer_segments_with_it(pets, tmp_path):
    save(tmp_path / "images" / "a.png")
    output = tmp_path / "masks"
    assert run_main(NAME, tmp_path / "images", output, "--json", tmp_path / "s.json") == 0
    assert (output / "a.png").is_file()
    assert f'"weights": "{NAME}"' in (tmp_path / "s.json").read_text()
    assert "no revision" in refusal(f"{NAME}@v9", tmp_path / "images", tmp_path / "more")


def test_infer_as_a_program(pets, tmp_path, hub):
    """The environment alone names the hub, as for a user; the failure is a line and exit code 2."""
    save(tmp_path / "images" / "a.png")
    command = [sys.executable, "infer.py", tmp_path / "images", "--device", "cpu", "--weights",
               "hf-hub:joe/cars", "--output", tmp_path / "masks"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=os.environ | {
        "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (f"error: hf-hub:joe/cars: there is no such model at {hub.address}, or "
                           "it is private; correct the name, or log in (hf auth login), or set "
                           "HF_TOKEN\n")


def test_an_export_goes_to_the_working_directory():
    assert default_output(f"{NAME}@main", ".onnx") == Path("pets.onnx")
    assert default_output("runs/pets/best.pth", ".onnx") == Path("runs/pets/best.onnx")


def test_an_encoder_starts_from_it(pets, file):
    network = load(file)
    options = network.config.model.encoder_options
    encoder = build_encoder("vit_tiny_patch16_224", options)
    assert not same(encoder, network.encoder)
    report = load_encoder_weights(encoder, "vit_tiny_patch16_224", NAME)
    assert same(encoder, network.encoder) and "models--joe--pets" in report


def test_the_example_of_the_page(pets, hub, tmp_path, capfd):
    hub.repositories["user/name"] = pets
    (example,) = page("docs/hub.md").blocks("python")
    exec(compile(example, "docs/hub.md", "exec"), {})
    assert capfd.readouterr().out == "('cat', 'dog, big', 'ship')\n"
