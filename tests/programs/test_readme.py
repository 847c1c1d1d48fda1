"""Whatever README.md and configs/ tell a user to type exists and is accepted."""

import importlib.util
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import infer
import train
from cosa.benchmark import __main__ as benchmark
from cosa.checkpoint import build_network, save_weights
from cosa.config import Config, load_config, settled, to_dict
from cosa.data import coco, voc
from cosa.data.labels import read_labels
from cosa.data.scenes.dataset import main as write_scenes
from cosa.evaluate import evaluate
from cosa.pictures.palette import voc_palette
from cosa.training.run_folder import RunFolder

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
INLINE = re.findall(r"`([^`\n]+)`", PROSE)


def blocks(language):
    return [text for name, text in BLOCKS if name == language]


def commands(start):
    """Arguments of each command that starts so, in blocks and in the text."""
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    found = [line[len(start) :] for line in [*lines, *INLINE] if line.startswith(start)]
    assert found, f"README.md never says `{start}`"
    return [shlex.split(arguments) for arguments in found]


def exists(path):
    return (PROJECT / path.rstrip("/")).exists()


def test_every_command_is_of_a_known_kind():
    known = ("make ", "pip install -r ", "pip install efficientnet-", "python train.py",
             "python infer.py ", "python -m ", "torchrun ")
    for line in "".join(blocks("bash")).replace("\\\n", " ").splitlines():
        assert not line or line.startswith(known), line


@pytest.mark.parametrize("arguments", commands("python train.py"))
def test_train_commands(arguments, monkeypatch):
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(RunFolder, "reopen", lambda run, overrides: load_config(None, overrides))
    monkeypatch.setattr(train, "train", lambda config, run, resume: (config, run, resume))
    config, run, resume = train.main(arguments)
    assert isinstance(config, Config)
    assert resume == ("--resume" in arguments)
    if resume:
        assert run.path == Path("runs/voc")


@pytest.mark.parametrize("arguments", commands("python infer.py "))
def test_infer_commands(arguments):
    given = infer.parse(arguments)
    assert given.input and given.weights and given.output


def test_torchrun_commands(monkeypatch):
    """The options are torchrun's, the programs take what comes after their names."""
    launcher = pytest.importorskip("torch.distributed.run").get_args_parser()
    programs = []
    for arguments in commands("torchrun "):
        given = launcher.parse_args(arguments)
        programs.append(given.training_script)
        if given.training_script == "train.py":
            test_train_commands(given.training_script_args, monkeypatch)
        else:
            test_infer_commands(given.training_script_args)
    assert set(programs) == {"train.py", "infer.py"}


def test_all_options_of_infer_are_listed(capsys):
    with pytest.raises(SystemExit):
        infer.parse(["--help"])
    option = r"--[a-z][a-z-]*"
    offered = set(re.findall(option, capsys.readouterr().out)) - {"--help"}
    rows = "".join(line.split("|")[1] for line in PROSE.splitlines() if line.startswith("| `--"))
    assert set(re.findall(option, rows)) == offered


def test_modules_that_are_run():
    names = {arguments[0] for arguments in commands("python -m ")}
    assert {"cosa.data.scenes", "cosa.benchmark"} <= names
    for name in names:
        assert importlib.util.find_spec(name), name
    for arguments in commands("python -m cosa.benchmark "):
        assert arguments[0] in benchmark.COMMANDS


def test_scenes_commands_write_folder_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in commands("python -m cosa.data.scenes "):
        assert write_scenes(arguments) == 0
        count = int(arguments[arguments.index("--count") + 1])
        assert len(list(Path(arguments[0], "images").iterdir())) == count
        assert len(read_labels(Path(arguments[0], "labels.csv")).rows) == count


def test_pip_and_make_commands():
    for arguments in commands("pip install -r "):
        assert exists(arguments[0])
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for arguments in commands("make "):
        assert re.search(f"^{arguments[0]}:", makefile, re.MULTILINE), arguments


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", PROSE) if "://" not in link]
    assert links
    for link in links:
        assert exists(link), link


def test_files_in_the_overview_exist_and_none_is_left_out():
    (overview,) = (text for text in blocks("text") if text.startswith("train.py"))
    named = re.findall(r"(?:^|  )((?:[\w.-]+/)*[\w.-]+(?:\.py|/))(?=\s)", overview, re.MULTILINE)
    for path in named:
        assert exists(path), path
    modules = {f"cosa/{path.name}" for path in (PROJECT / "cosa").glob("*.py")}
    assert modules - set(named) == {"cosa/__init__.py"}


def test_files_in_the_text_exist():
    files = [name for name in INLINE if re.match(r"(cosa|configs|docs|tests)/.*\w$", name)]
    assert "cosa/config/sections.py" in files
    for name in files:
        assert exists(name), name


def test_names_in_the_code_exist():
    names = [name for name in INLINE if re.fullmatch(r"cosa(\.\w+)+", name)]
    assert "cosa.losses.cam_to_seg" in names
    for name in names:
        _, module, *attributes = name.split(".")
        found = importlib.import_module(f"cosa.{module}")
        for attribute in attributes:
            found = getattr(found, attribute)


def test_config_keys_in_the_text_exist():
    sections = to_dict(Config())
    keys = [re.fullmatch(r"(\w+)\.(\w+)(=\S+)?", text) for text in INLINE]
    keys = [key for key in keys if key and isinstance(sections.get(key[1]), dict)]
    keys = [key for key in keys if key[2] not in ("py", "txt", "json")]  # files, not keys
    assert len(keys) >= 3
    for key in keys:
        assert key[2] in sections[key[1]], key[0]
        if key[3]:
            load_config(None, [key[0]])


def test_scores_and_run_files_exist():
    (table,) = re.findall(r"^\| name .*?(?=\n\n)", PROSE, re.MULTILINE | re.DOTALL)
    scores = re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines()))
    assert scores[0] == "miou"
    for score in scores:
        assert f"``{score}``" in evaluate.__doc__, score
    run = vars(RunFolder("runs/x"))
    files = {path.name for key, path in run.items() if key != "path"}
    assert files <= {text.rstrip("/") for text in INLINE}


def test_labels_example_is_read(tmp_path):
    (text,) = blocks("csv")
    path = tmp_path / "labels.csv"
    path.write_text(text)
    assert [(row.image, row.labels) for row in read_labels(path).rows] == [
        ("cats/a.jpg", ["cat", "sofa"]),
        ("b.png", ["dog"]),
    ]


def test_python_example_runs(tmp_path, monkeypatch):
    config = to_dict(load_config(PROJECT / "configs/demo.yaml"))
    network = build_network(config, num_classes=2)
    (tmp_path / "runs/demo").mkdir(parents=True)
    save_weights(tmp_path / "runs/demo/best.pth", network, config=config,
                 classes=("cat", "sofa"), palette=voc_palette(3))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    (text,) = blocks("python")
    script = tmp_path / "example.py"
    script.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    seen = runpy.run_path(str(script))
    assert seen["mask"].shape == (96, 96)
    assert seen["cam"].shape == (2, 96, 96)


SHIPPED = ("demo", "voc", "coco", "custom", "photographs", "photographs_regularizers")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_load(name):
    config = load_config(PROJECT / f"configs/{name}.yaml")
    assert config.name == name
    config = settled(config, 311)
    assert config.method.cls_iterations < config.train.iterations


def test_encoder_of_the_demo_is_included():
    assert exists(load_config(PROJECT / "configs/demo.yaml").model.weights)


def test_all_shipped_configurations_are_tested():
    assert {path.stem for path in (PROJECT / "configs").glob("*.yaml")} == set(SHIPPED)


@pytest.mark.parametrize("name, classes", [("voc", voc.CLASSES), ("coco", coco.CLASSES)])
def test_coexistence_classes_are_classes(name, classes):
    chosen = load_config(PROJECT / f"configs/{name}.yaml").evaluate.coexistence_classes
    assert chosen and set(chosen) <= set(classes)


def test_configurations_hold_the_values_of_the_paper():
    config = load_config(PROJECT / "configs/voc.yaml")
    loss, method = config.loss, config.method
    assert (loss.cls, loss.cls_aux, loss.c2s, loss.c2s_aux) == (1, 1, 0.1, 0.1)
    assert (loss.s2c, loss.csc) == (0.05, 0.1)
    assert (method.perplexity_alpha, method.perplexity_beta, method.temperature) == (0.8, 1, 0.01)
    assert (method.csc_epsilon, config.threshold.queue_length) == (1, 100)
    assert (config.teacher.momentum, config.optimizer.lr) == (0.9994, 6e-5)
    assert (config.augment.crop_size, config.train.iterations, config.train.batch_size) == (
        448, 32000, 4
    )
    longer = load_config(PROJECT / "configs/coco.yaml")
    assert (longer.train.iterations, longer.train.batch_size) == (60000, 8)
    assert longer.method.cls_iterations == longer.method.s2c_start == 10000
