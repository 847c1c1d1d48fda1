"""A run on the hub: the real client against a server that stands in for huggingface.co."""

import json
import re
import shutil

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants

import cosa
from cosa import checkpoint
from cosa.config import load_config
from cosa.core.errors import UserError
from cosa.hub.push import main
from cosa.training.run_folder import RunFolder
from tests.helpers.hub_server import TOKEN, Repository

FILES = ["README.md", "config.json", "config.yaml", "model.safetensors",
         *(f"panels/0{number}.png" for number in range(1, 5))]
"""The panels: two of the validation and two of the test scenes."""


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, to be changed."""
    return RunFolder(shutil.copytree(trained.path, tmp_path / "run"))


@pytest.fixture
def login(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def push(run, *options, name="joe/pets"):
    return main(["push", str(run.path), name, *map(str, options)])


def refused(run, *options, name="joe/pets"):
    with pytest.raises(UserError) as caught:
        push(run, *options, name=name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def dry(run, folder, *options):
    assert push(run, "--dry-run", folder, *options) == 0
    return (folder / "README.md").read_text(encoding="utf-8")


def found(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_what_is_pushed_comes_back(hub, login, trained, capfd):
    assert push(trained, "--licence", "mit") == 0
    repository = hub.repositories["joe/pets"]
    assert sorted(repository.files) == FILES and not repository.private
    assert f"{hub.address}/joe/pets: 8 files, as commit " in capfd.readouterr().out
    network, last = cosa.load("hf-hub:joe/pets"), checkpoint.load(trained.last)
    for key, value in last.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    for name in ("classes", "palette", "thresholds", "image_size"):
        assert getattr(network, name) == getattr(last, name)


def test_a_second_push_replaces_the_pictures(hub, login, trained):
    assert push(trained) == 0
    repository = hub.repositories["joe/pets"]
    repository.files |= {"panels/07.png": b"old", "notes.md": b"theirs"}
    assert push(trained, "--no-panels") == 0
    assert sorted(repository.files) == [*FILES[:3], "model.safetensors", "notes.md"]
    assert "panels/" not in repository.files["README.md"].decode()


def test_the_metadata_is_what_the_hub_reads(trained, tmp_path):
    card = ModelCard(dry(trained, tmp_path / "files", "--licence", "cc-by-nc-4.0"))
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.pipeline_tag == "image-segmentation"
    assert "cc\\-by\\-nc\\-4\\.0, as stated by who has pushed it" in card.text


def test_without_a_licence(trained, tmp_path, capfd):
    text = dry(trained, tmp_path / "files")
    assert ModelCard(text).data.license == "unknown" and "None was stated" in text
    assert capfd.readouterr().err.startswith("note: no licence is stated")


def test_a_dry_run_pushes_nothing(hub, trained, tmp_path, capfd):
    dry(trained, tmp_path / "files", "--licence", "mit")
    assert found(tmp_path / "files") == FILES and not hub.asked
    assert "nothing was pushed" in capfd.readouterr().out
    assert "is not empty" in refused(trained, "--dry-run", tmp_path / "files")


def test_the_card_says_what_was_measured(trained, tmp_path):
    text = dry(trained, tmp_path / "files")
    summary = json.loads(trained.summary.read_text())
    assert "On 5 images (generated scenes of the test split, on which no choice was made)" in text
    measured, absent = text.split("## What was not measured")
    assert f"leads to the segmentation | {100 * summary['miou']:.1f} |" in measured
    assert "contour quality F" in measured and "robustness" in absent
    assert "- iterations: 4\n" in text and "from random weights" in text
    for name, value in summary["iou"].items():
        share = "not measured" if value is None else f"{100 * value:.1f}"
        assert re.search(rf"\| {name} \| #[0-9a-f]{{6}} \| {share} \|", text), name


def test_what_was_not_measured_is_listed_as_such(run, tmp_path):
    summary = json.loads(run.summary.read_text())
    for key in ("miou", "iou", "boundary_f"):
        del summary[key]
    run.summary.write_text(json.dumps(summary | {"cam_miou": None}))
    measured, absent = dry(run, tmp_path / "files").split("## What was not measured")
    assert "nothing but the image" not in measured and "nothing but the image" in absent
    assert "- CAM mIoU at ξ: " in absent
    assert absent.count("| not measured |") == 1 + len(checkpoint.load(run.last).classes)


@pytest.mark.parametrize("change", ["gone", "older"])
def test_scores_of_another_network_are_not_told(run, tmp_path, change):
    if change == "gone":
        run.summary.unlink()
    else:
        summary = json.loads(run.summary.read_text())
        run.summary.write_text(json.dumps(summary | {"iterations": 3}))
    text = dry(run, tmp_path / "files")
    assert "Nothing: there is no evaluation of this very network." in text
    assert "panels/" not in text


def test_the_best_network_with_the_scores_that_chose_it(run, tmp_path):
    rows = run.read_evaluations()
    assert [row["iteration"] for row in rows] == [2, 4]
    rows[0]["miou"], rows[1]["miou"] = 0.625, 0.5
    run.evaluations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.last.unlink()
    assert "push best.pth: --best" in refused(run, "--dry-run", tmp_path / "x")
    text = dry(run, tmp_path / "files", "--best")
    assert "leads to the segmentation | 62.5 |" in text and "- iterations: 2\n" in text
    assert "chosen as the best of 2 evaluations by these scores" in text
    assert "panels/" not in text
    best = checkpoint.load(run.best).state_dict()
    pushed = checkpoint.load(tmp_path / "files" / "model.safetensors").state_dict()
    assert all(torch.equal(value, pushed[key]) for key, value in best.items())


def test_no_file_says_where_anything_was(run, tmp_path):
    config = yaml.safe_load(run.config.read_text())
    secret = "/home/secret/of/joe"
    config["data"] |= {"root": secret, "val_labels": secret}
    config["model"] |= {"pretrained": True, "weights": f"{secret}/vit.safetensors"}
    config["output"] = secret
    run.config.write_text(yaml.safe_dump(config))
    content = checkpoint.read(run.last)
    content["about"]["config"] = config
    checkpoint.save(run.last, content)
    panel = next(run.panels.glob("*.png"))
    panel.rename(run.panels / "secret of joe.png")
    text = dry(run, tmp_path / "files")
    assert "vit\\.safetensors" in text
    for path in (tmp_path / "files").rglob("*.*"):
        assert b"secret" not in path.read_bytes() and "secret" not in path.name
    assert load_config(tmp_path / "files" / "config.yaml").model.weights == "vit.safetensors"


def test_the_range_of_values_is_no_secret():
    config = load_config(None, ["data.name=folder", "data.value_range=[0, 4095]",
                                "data.bands=[4, 3, 2]", "data.labels=/home/joe/labels.csv"])
    data = checkpoint.shareable(config).data
    assert (data.value_range, data.bands, data.labels) == ((0, 4095), (4, 3, 2), "")


def test_a_private_model(hub, login, trained):
    assert push(trained, "--private") == 0
    assert hub.repositories["joe/pets"].private


def test_nothing_private_goes_to_a_public_repository(hub, login, trained):
    hub.repositories["joe/pets"] = Repository()
    assert "is there already and public" in refused(trained, "--private")
    assert not hub.repositories["joe/pets"].files


def test_who_is_not_logged_in(hub, trained):
    assert "who pushes must be known to the hub: log in" in refused(trained)
    assert not hub.asked


def test_a_wrong_token(hub, trained, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the hub does not accept the token" in refused(trained)


def test_the_name_of_another_user(hub, login, trained):
    assert "the token does not allow that" in refused(trained, name="ann/pets")


def test_a_licence_that_the_hub_does_not_know(hub, login, trained):
    message = refused(trained, "--licence", "mine")
    assert '"license" must be one of many' in message
    assert not hub.repositories["joe/pets"].files


def test_no_network(hub, login, trained, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached: check the network" in refused(trained)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in refused(trained)


def test_a_hub_that_breaks_off(hub, login, trained):
    hub.broken = True
    assert "503" in refused(trained)


@pytest.mark.parametrize("change, reason", [
    (lambda run: run.config.unlink(), "config.yaml is missing"),
    (lambda run: run.last.write_bytes(b"x"), "last.pth"),
    (lambda run: run.summary.write_text("{"), "line 1 is no JSON"),
    (lambda run: run.summary.write_text('{"miou": "high"}'), "miou must be"),
    (lambda run: run.summary.write_text('{"iou": {"cat": 7}, "iterations": 4}'), "iou.cat must be"),
    (lambda run: (run.panels / "a.png").write_text("x"), "is no PNG file"),
])
def test_damaged_runs(run, tmp_path, change, reason):
    change(run)
    assert reason in refused(run, "--dry-run", tmp_path / "files")
    assert not (tmp_path / "files" / "README.md").exists()


def test_names_and_options_that_are_none(trained, capfd):
    for name in ("pets", "joe/pets/more", "joe/..", ""):
        assert "is no name of a model on the hub" in refused(trained, name=name)
    assert "names a revision" in refused(trained, name="joe/pets@v1")
    with pytest.raises(SystemExit, match="2"):
        push(trained, "--licence", "mit\nprivate: false")
    assert "is no licence as the hub writes it" in capfd.readouterr().err
