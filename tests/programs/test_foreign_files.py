"""Files damaged at random: each is read, or refused in one sentence; nothing else comes out."""

import json
import shutil
from random import Random

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cosa.checkpoint import load, save
from cosa.checkpoint.networks import build_network, describe
from cosa.config import from_dict, load_config, load_saved, to_dict
from cosa.core.errors import UserError
from cosa.data.registry import build_dataset
from cosa.inference.labels import read_image_labels
from cosa.pictures.palette import voc_palette
from cosa.training.build import assemble
from cosa.training.optimizer import build_optimizer
from cosa.training.run_folder import RunFolder
from cosa.training.session import Session
from tests.helpers.mutation import damaged_bytes, damaged_tree
from tests.helpers.tiny import tiny_tree

COUNTS = [pytest.param(1, id="few"), pytest.param(20, id="many", marks=pytest.mark.slow)]

CLASSES = ("boat", "cat")


def attempts(count, act):
    """Damage and read ``count`` times; how many were refused. The seed of a traceback is told."""
    refused = 0
    for seed in range(count):
        try:
            act(Random(seed))
        except UserError as error:
            assert "\n" not in str(error), f"seed {seed}: {error}"
            assert len(str(error)) < 15_000, f"seed {seed}"
            refused += 1
        except BaseException as error:
            error.add_note(f"seed {seed}") if hasattr(error, "add_note") else None
            raise
    return refused


@pytest.mark.parametrize("times", COUNTS)
@pytest.mark.parametrize("how", ["bytes", "tree"])
def test_configurations(tmp_path, times, how):
    tree, path = to_dict(from_dict(tiny_tree())), tmp_path / "config.yaml"
    whole = yaml.safe_dump(tree).encode()

    def act(draw):
        if how == "bytes":
            path.write_bytes(damaged_bytes(whole, draw))
        else:
            path.write_text(yaml.safe_dump(damaged_tree(tree, draw)))
        config = (load_config, load_saved)[draw.randrange(2)](path)
        assert from_dict(to_dict(config)) == config

    assert attempts(times * 12, act) > times * 3


@pytest.mark.parametrize("times", COUNTS)
def test_values_on_the_command_line(times):
    keys = ["train.iterations", "optimizer.lr", "name", "model.encoder_options",
            "model.normalization", "teacher.scales", "data.root", "base", "model"]

    def act(draw):
        text = damaged_bytes(b"[1, 2.5]", draw).decode(errors="surrogateescape")
        load_config(None, [f"{draw.choice(keys)}={text}"])

    assert attempts(times * 40, act) > times * 10


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (12, 8)).save(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "labels.csv").write_text("image,labels\na,cat;boat\nb.jpg,boat\nc,\n")
    (tmp_path / "columns.csv").write_text("image,boat,cat\na,1,1\nb.jpg,1,0\nc,0,0\n")
    (tmp_path / "classes.txt").write_text("boat\ncat\n")
    return tmp_path


@pytest.mark.parametrize("times", COUNTS)
@pytest.mark.parametrize("name", ["labels.csv", "columns.csv", "classes.txt"])
def test_labels_of_folders(folder, times, name):
    whole = (folder / name).read_bytes()
    labels = name if name.endswith(".csv") else "labels.csv"
    config = from_dict({"data": {"name": "folder", "root": str(folder), "images": "images",
                                 "labels": labels, "classes": "classes.txt"}})

    def act(draw):
        (folder / name).write_bytes(damaged_bytes(whole, draw))
        build_dataset(config.data, "train").check()
        if labels == name:
            read_image_labels(folder / name, CLASSES)

    assert attempts(times * 50, act) > times * 5


@pytest.mark.parametrize("times", COUNTS)
@pytest.mark.parametrize("name, whole", [
    ("labelmap.txt", b"# label:color_rgb:parts:actions\nboat:1,2,3::\ncat:128,0,0:a:b\n"),
    ("map.csv", b"name,r,g,b\nboat,1,2,3\ncat,128,0,0\n"),
    ("map.json", b'{"boat": [1, 2, 3], "cat": "#800000"}'),
    ("masks.json", b'{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b"}],'
                   b'"categories": [{"id": 3, "name": "boat"}], "annotations": [{"image_id": 1,'
                   b'"category_id": 3, "segmentation": {"counts": ":X1^1"}}, {"image_id": 2,'
                   b'"category_id": 3, "bbox": [1, 2, 3.5, 4], "segmentation": null}]}'),
])
def test_masks_of_folders(folder, times, name, whole):
    (folder / "masks").mkdir()
    for stem in "ab":
        Image.new("RGB", (12, 8), (1, 2, 3)).save(folder / f"masks/{stem}.png")
    data = {"name": "folder", "root": str(folder), "images": "images", "labels": "labels.csv",
            "masks": name if name == "masks.json" else "masks",
            "colors": name if name.startswith("map") else "", "classes": "classes.txt"}
    (folder / name).write_bytes(whole)
    build_dataset(from_dict({"data": data}).data, "val").check()

    def act(draw):
        (folder / name).write_bytes(damaged_bytes(whole, draw))
        dataset = build_dataset(from_dict({"data": data}).data, "val")
        dataset.check()
        assert all(dataset.mask(index).shape == (8, 12) for index in range(len(dataset)))

    assert attempts(times * 50, act) > times * 5


@pytest.mark.parametrize("times", COUNTS)
@pytest.mark.parametrize("name", ["Annotations/a.xml", "ImageSets/Segmentation/train.txt"])
def test_voc(tmp_path, times, name):
    for part in ("JPEGImages", "Annotations", "ImageSets/Segmentation", "SegmentationClass"):
        (tmp_path / part).mkdir(parents=True)
    Image.new("RGB", (12, 8)).save(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "Annotations" / "a.xml").write_text(
        '<?xml version="1.0"?><annotation><object><name>cat</name></object></annotation>')
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    config = from_dict({"data": {"name": "voc", "root": str(tmp_path), "train_split": "train"}})
    whole = (tmp_path / name).read_bytes()

    def act(draw):
        (tmp_path / name).write_bytes(damaged_bytes(whole, draw))
        build_dataset(config.data, "train").check()

    assert attempts(times * 60, act) > times * 20


@pytest.mark.parametrize("times", COUNTS)
@pytest.mark.parametrize("how", ["bytes", "tree"])
def test_coco(tmp_path, times, how):
    (tmp_path / "val2014").mkdir()
    (tmp_path / "annotations").mkdir()
    Image.new("RGB", (12, 8)).save(tmp_path / "val2014" / "COCO_val2014_000000000007.jpg")
    path = tmp_path / "annotations" / "instances_val2014.json"
    item = {"image_id": 7, "category_id": 3, "iscrowd": 0, "area": 9.5}
    content = {
        "categories": [{"id": 3, "name": "cat"}],
        "images": [{"id": 7, "file_name": "COCO_val2014_000000000007.jpg", "width": 12,
                    "height": 8}],
        "annotations": [
            item | {"id": 1, "segmentation": [[1, 1, 9.5, 1, 9, 6]]},
            item | {"id": 2, "segmentation": {"counts": [10, 80, 6], "size": [8, 12]}},
        ],
    }
    config = from_dict({"data": {"name": "coco", "root": str(tmp_path)}})

    def act(draw):
        path.with_suffix(".labels.csv").unlink(missing_ok=True)
        path.write_bytes(damaged_bytes(json.dumps(content).encode(), draw) if how == "bytes"
                         else json.dumps(damaged_tree(content, draw)).encode())
        dataset = build_dataset(config.data, "val")
        dataset.check()
        assert all(dataset.mask(index).dtype == np.uint8 for index in range(len(dataset)))

    assert attempts(times * 60, act) > times * 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with a checkpoint, its content, and a session that resumes from it."""
    config = from_dict(tiny_tree(tmp_path_factory.mktemp("runs")))
    run = RunFolder(f"{config.output}/{config.name}")
    run.create(config)
    val_set = build_dataset(config.data, "val")
    torch.manual_seed(0)
    network = build_network(to_dict(config), len(val_set.classes))
    cotraining = assemble(network.train(), config)
    optimizer = build_optimizer(cotraining.online, config.optimizer, cotraining.regularizers)
    sum(p.sum() for p in cotraining.online.parameters() if p.requires_grad).backward()
    optimizer.step()
    session = Session(config, run, cotraining, optimizer, val_set)
    session.state.iteration = 2
    session.save_best()
    session.save()
    for iteration in (1, 2, 3):
        run.log({"iteration": iteration, "loss": 0.5})
    run.log_evaluation(2, {"miou": 0.5})
    run.write_summary({"iterations": 2})
    return session, torch.load(run.last, weights_only=True)


@pytest.mark.parametrize("times", COUNTS)
def test_checkpoints(trained, tmp_path, times):
    session, content = trained
    whole = session.run.last.read_bytes()
    strange = [torch.zeros(3), torch.zeros(0, dtype=torch.int64)]

    def act(draw):
        # The weights are many, and of one kind: the rest is what differs.
        part = draw.choice(["about", "optimizer", "rng", "state", "log", "best", "thresholds"])
        damaged = damaged_tree({part: content[part]}, draw)
        if draw.random() < 0.3:
            damaged = damaged_tree({part: content[part]}, draw, strange)
        save(session.run.last, {**content, **damaged})
        if part == "about":
            load(session.run.last)
        session.restore()
        for value in session.optimizer.state.values():
            assert value["exp_avg"].isfinite().all()

    try:
        assert attempts(times * 15, act) > times * 3
    finally:
        session.run.last.write_bytes(whole)


@pytest.mark.parametrize("times", COUNTS)
@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl", "summary.json"])
def test_run_folders(trained, tmp_path, times, name):
    shutil.copytree(trained[0].run.path, tmp_path / "run", ignore=lambda *_: ["last.pth"])
    run = RunFolder(tmp_path / "run")
    whole = (run.path / name).read_bytes()
    lines = [json.loads(line) for line in (
        whole.splitlines() if name.endswith("l") else [whole])]

    def act(draw):
        other = "\n".join(map(json.dumps, damaged_tree(lines, draw))).encode()
        (run.path / name).write_bytes(draw.choice([damaged_bytes(whole, draw), other]))
        run.read_evaluations()
        run.forget_after(2)
        run.log_evaluation(3, {"miou": 0.5})

    assert attempts(times * 40, act) > times * 5


@pytest.mark.parametrize("times", COUNTS)
def test_descriptions_in_safetensors(tmp_path, times):
    from safetensors.torch import save_file

    config = to_dict(from_dict(tiny_tree()))
    tensors = build_network(config, len(CLASSES)).state_dict()
    about = describe(config, CLASSES, voc_palette(len(CLASSES) + 1), (0.25, 0.75))

    def act(draw):
        text = json.dumps(damaged_tree(about, draw)).encode()
        if draw.random() < 0.3:
            text = damaged_bytes(text, draw)
        metadata = {"cosa": text.decode(errors="replace")}
        save_file(tensors, tmp_path / "a.safetensors", metadata)
        load(tmp_path / "a.safetensors")

    assert attempts(times * 15, act) > times * 3
