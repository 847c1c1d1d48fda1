import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import cosa
import train
from cosa import losses
from cosa.checkpoint import read
from cosa.config import load_config
from cosa.core.errors import UserError
from cosa.cotrain import CoTraining
from cosa.data.scenes.dataset import ScenesDataset, export
from cosa.training import evaluation as scoring
from cosa.training.run_folder import RunFolder
from tests.helpers.tiny import ROOT, SIZE
from tests.helpers.training import (
    RANDOM,
    assert_equal_runs,
    configure,
    evaluated,
    fake_scores,
    lines,
    stop_after,
    training_lines,
    without_time,
)

TERMS = ("cls", "cls_aux", "c2s", "c2s_aux", "s2c", "csc")


# A whole run


def test_a_run_leaves_the_files_it_promises(finished):
    run, done = finished
    config = load_config(run.config)
    assert config.train.iterations == 12 and config.optimizer.beta2 == 0.999
    assert read(run.last)["state"]["iteration"] == 12
    panels = sorted(run.panels.glob("*.png"))
    assert panels and all(Image.open(panel).size[0] > SIZE for panel in panels)
    summary = json.loads(run.summary.read_text())
    for name in ("miou", "miou_label_filtered", "cam_miou", "aux_cam_miou", "cam_best_miou",
                 "classification_map", "best_validation_score", "xi", "xi_aux"):
        assert 0 <= summary[name] <= 1, name
    assert summary["iterations"] == 12 and summary["images"] == 5 and summary["split"] == "test"
    assert summary["seconds"] > 0
    assert 50 < summary["peak_memory_mb"] < 10_000  # PyTorch itself, and a tiny network
    assert "label-free mIoU" in done.stdout and str(run.path) in done.stdout


def test_the_metrics_follow_the_stages(finished):
    run, _ = finished
    logged = training_lines(run)
    assert [line["iteration"] for line in logged] == list(range(1, 13))
    assert set(logged[2]) & set(TERMS) == {"cls", "cls_aux"}
    assert set(logged[3]) & set(TERMS) == {"cls", "cls_aux", "c2s", "c2s_aux", "csc"}
    assert set(logged[4]) & set(TERMS) == set(TERMS)
    weights = load_config(run.config).loss
    for line in logged:
        total = sum(getattr(weights, term) * line[term] for term in TERMS if term in line)
        assert line["loss"] == pytest.approx(total, rel=1e-4)
    assert logged[0]["lr"] == pytest.approx(1e-3 / 3)
    assert logged[-1]["lr"] == pytest.approx(1e-3 * (1 / 12) ** 0.9)
    assert all(line["xi"] is None for line in logged[:3]), "nothing was fitted yet"
    assert all(0 < line[xi] < 1 for line in logged[3:] for xi in ("xi", "xi_aux"))


def test_evaluations_have_a_file_of_their_own(finished):
    run, _ = finished
    assert len(lines(run)) == len(training_lines(run)) == 12
    assert evaluated(run) == [6, 12]
    assert all("miou" in scores and "iou" in scores for scores in run.read_evaluations())


def test_the_weights_of_a_run_load_for_inference(finished):
    run, _ = finished
    best, last = cosa.load(str(run.best)), cosa.load(str(run.last))
    assert best.classes == last.classes and len(best.classes) == 7
    assert best.image_size == SIZE
    xi = json.loads(run.summary.read_text())
    assert last.thresholds == (xi["xi"], xi["xi_aux"])


# Resuming


@pytest.mark.parametrize("workers, then", [(0, 1), (1, 0)])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    finished, tmp_path, monkeypatch, workers, then
):
    config = configure(tmp_path, model=RANDOM, train={"evaluate_every": 6},
                       data={"workers": workers})
    run = RunFolder(tmp_path / "runs" / "tiny")
    stop_after(monkeypatch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train.main([config]) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert read(run.last)["state"]["iteration"] == len(training_lines(run)) == 6
    torch.rand(7)  # the global generator is elsewhere now
    assert train.main(["--resume", str(run.path), f"data.workers={then}"]) == 0
    assert_equal_runs(run, finished[0])


def test_a_killed_run_goes_on_from_its_last_checkpoint(finished, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    config = configure(tmp_path, model=RANDOM,
                       train={"evaluate_every": 6, "checkpoint_every": 5})
    run = RunFolder(tmp_path / "runs" / "tiny")
    stop_after(monkeypatch, 9, kill)
    with pytest.raises(Killed):
        train.main([config])
    monkeypatch.undo()
    assert read(run.last)["state"]["iteration"] == 6 and len(training_lines(run)) == 8
    assert train.main(["--resume", str(run.path)]) == 0
    assert_equal_runs(run, finished[0])
    assert evaluated(run) == [6, 12]


def test_a_run_on_the_cpu_leaves_the_gpus_alone(tmp_path, monkeypatch):
    def refuse(*args):
        raise AssertionError("a GPU was touched")

    for name in ("get_rng_state", "get_rng_state_all", "set_rng_state", "set_rng_state_all"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    run = RunFolder(tmp_path / "runs" / "tiny")
    assert train.main([configure(tmp_path, train={"iterations": 1})]) == 0
    assert train.main(["--resume", str(run.path), "train.iterations=2"]) == 0
    assert set(read(run.last)["rng"]) == {"cpu"}


@pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA device")
def test_the_random_state_of_the_gpu_is_restored(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "runs" / "tiny")
    stop_after(monkeypatch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    config = configure(tmp_path, model=RANDOM, device="cuda")
    assert train.main([config]) == 128 + signal.SIGTERM
    monkeypatch.undo()
    state = read(run.last)["rng"]["cuda"]
    torch.rand(7, device="cuda")
    set_states = []
    original = torch.cuda.set_rng_state
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda value, device: (
        set_states.append(value) or original(value, device)))
    assert train.main(["--resume", str(run.path)]) == 0
    assert len(set_states) == 1 and torch.equal(set_states[0], state)


def test_overrides_on_resuming_take_effect_and_are_kept(stopped):
    overrides = ["optimizer.weight_decay=0.5", "optimizer.beta1=0.8", "train.iterations=6",
                 "optimizer.head_lr_factor=3"]
    assert train.main(["--resume", str(stopped.path), *overrides]) == 0
    groups = read(stopped.last)["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    assert {group["lr_scale"] for group in groups} == {1.0, 3.0}
    assert all(group["betas"][0] == 0.8 for group in groups)
    config = load_config(stopped.config)
    assert config.train.iterations == 6 and config.optimizer.weight_decay == 0.5


def test_resuming_a_finished_run_scores_it_again_and_repeats_nothing(stopped):
    assert train.main(["--resume", str(stopped.path), "train.iterations=6"]) == 0
    before, metrics = read(stopped.last), stopped.metrics.read_text()
    scores = [without_time(line) for line in stopped.read_evaluations()]
    stopped.summary.unlink()
    assert train.main(["--resume", str(stopped.path)]) == 0
    assert stopped.summary.exists() and read(stopped.last)["state"] == before["state"]
    assert stopped.metrics.read_text() == metrics and len(training_lines(stopped)) == 6
    assert [without_time(line) for line in stopped.read_evaluations()] == scores
    assert evaluated(stopped) == [6]


def test_an_extended_run_remembers_its_best(stopped, monkeypatch):
    """Validation, test; then validation at 8 (periodic), at 12, and test."""
    fake_scores(monkeypatch, 0.5, 0.4, 0.3, 0.45, 0.4)
    assert train.main(["--resume", str(stopped.path), "train.iterations=6"]) == 0
    best = stopped.best.read_bytes()
    assert train.main(["--resume", str(stopped.path), "train.iterations=12",
                       "train.evaluate_every=4"]) == 0
    assert evaluated(stopped) == [6, 8, 12]
    assert stopped.best.read_bytes() == best
    summary = json.loads(stopped.summary.read_text())
    assert summary["best_validation_score"] == 0.5 and summary["iterations"] == 12
    assert len(training_lines(stopped)) == 12


def test_a_run_killed_in_an_evaluation_has_its_checkpoint(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*args, **options):
        raise Killed

    config = configure(tmp_path, train={"evaluate_every": 4, "checkpoint_every": 4})
    monkeypatch.setattr(scoring, "evaluate", kill)
    with pytest.raises(Killed):
        train.main([config])
    state = read(tmp_path / "runs" / "tiny" / "last.pth")["state"]
    assert state["iteration"] == 4 and state["evaluated"] == 0


def test_a_run_killed_after_an_evaluation_knows_its_best(tmp_path, monkeypatch):
    config = configure(tmp_path, train={"evaluate_every": 4})
    run = RunFolder(tmp_path / "runs" / "tiny")
    fake_scores(monkeypatch, 0.7)
    with pytest.raises(IndexError):  # no second score: as if killed there
        train.main([config])
    assert read(run.last)["state"]["best"] == 0.7


def test_best_is_there_even_if_no_score_is_defined(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "evaluate", lambda *args, **options: {
        "miou": None, "classification_map": None, "images": 1, "seconds": 0.0})
    assert train.main([configure(tmp_path)]) == 0
    assert cosa.load(str(tmp_path / "runs" / "tiny" / "best.pth")).classes


def test_classification_alone_has_no_threshold(tmp_path):
    loss = {"c2s": 0.0, "c2s_aux": 0.0, "s2c": 0.0, "csc": 0.0}
    assert train.main([configure(tmp_path, loss=loss, train={"iterations": 2})]) == 0
    run = RunFolder(tmp_path / "runs" / "tiny")
    summary = json.loads(run.summary.read_text())
    assert summary["xi"] is summary["xi_aux"] is summary["cam_miou"] is None
    assert summary["cam_best_miou"] > 0
    assert cosa.load(str(run.best)).thresholds == (None, None)


def test_resuming_with_another_network_is_refused(stopped):
    before = stopped.last.read_bytes(), stopped.config.read_text(), stopped.metrics.read_text()
    with pytest.raises(UserError, match="does not fit this configuration.*decoder") as caught:
        train.main(["--resume", str(stopped.path), "model.decoder_width=8"])
    assert "\n" not in str(caught.value)
    after = stopped.last.read_bytes(), stopped.config.read_text(), stopped.metrics.read_text()
    assert before == after


def test_resuming_with_other_classes_is_refused(stopped, monkeypatch):
    original = ScenesDataset.__init__

    def renamed(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.classes = ("ship", *self.classes[1:])

    monkeypatch.setattr(ScenesDataset, "__init__", renamed)
    before = {path: path.read_bytes() for path in stopped.path.glob("*.*")}
    with pytest.raises(UserError, match="trained on the classes.*now has ship, "):
        train.main(["--resume", str(stopped.path)])
    assert {path: path.read_bytes() for path in stopped.path.glob("*.*")} == before


def test_resuming_from_weights_alone_is_refused(stopped):
    content = read(stopped.last)
    torch.save({"about": content["about"], "assignment": content["assignment"]}, stopped.last)
    with pytest.raises(UserError, match="does not fit this configuration"):
        train.main(["--resume", str(stopped.path)])



# Things that go wrong


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    config = configure(tmp_path, train={"checkpoint_every": 2})
    run = RunFolder(tmp_path / "runs" / "tiny")
    calls = []
    original = losses.seg_to_cam_at_positions

    def broken(*args, **kwargs):
        calls.append(1)
        loss = original(*args, **kwargs)
        return loss * float("nan") if len(calls) == 4 else loss

    monkeypatch.setattr(losses, "seg_to_cam_at_positions", broken)
    with pytest.raises(UserError) as caught:
        train.main([config])
    message = str(caught.value)
    assert "not finite at iteration 7" in message and "terms: s2c;" in message
    assert message.count("train_000") == 4, "all images of the batch are named"
    content = read(run.last)
    assert content["state"]["iteration"] == 6
    assert all(torch.isfinite(value).all() for value in content["online"].values())
    monkeypatch.undo()
    assert train.main(["--resume", str(run.path)]) == 0


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoiled(tmp_path, monkeypatch):
    config = configure(tmp_path, train={"checkpoint_every": 2}, optimizer={"clip_norm": 0.0})
    run = RunFolder(tmp_path / "runs" / "tiny")
    calls, networks = [], []
    original, init = losses.classification_of_images, CoTraining.__init__

    def steep(logits, labels):
        calls.append(1)
        loss = original(logits, labels)
        # Of an infinite slope, and no value.
        infinite = (logits - logits.detach()).sum().abs().sqrt()
        return loss + infinite if len(calls) == 9 else loss

    monkeypatch.setattr(losses, "classification_of_images", steep)
    monkeypatch.setattr(CoTraining, "__init__", lambda self, network, **more: (
        networks.append(network), init(self, network, **more))[1])
    with pytest.raises(UserError, match="norm of the gradient is not finite at iteration 4") as e:
        train.main([config])
    assert str(e.value).count("train_000") == 4
    assert all(torch.isfinite(p).all() for p in networks[0].parameters())
    assert read(run.last)["state"]["iteration"] == 4
    monkeypatch.undo()
    assert train.main(["--resume", str(run.path)]) == 0


def test_diverged_weights_are_no_traceback(tmp_path, monkeypatch):
    original = CoTraining.update_assignment

    def spoil(self, iteration):
        original(self, iteration)
        if iteration == 4:
            with torch.no_grad():
                self.assignment.network.classifier.weight.fill_(float("nan"))

    monkeypatch.setattr(CoTraining, "update_assignment", spoil)
    with pytest.raises(UserError, match="diverged: .* are NaN at iteration 5 .images: train_000"):
        train.main([configure(tmp_path)])


def test_a_full_disk_is_one_line(train_program, tmp_path, monkeypatch):
    def full(self, record):
        raise OSError(28, "No space left on device", str(self.metrics))

    monkeypatch.setattr(RunFolder, "log", full)
    code, _, errors = train_program(configure(tmp_path))
    assert code == 2 and "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: ") and "No space left on device" in last


def test_a_run_is_not_overwritten(stopped, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the data was looked at first")

    monkeypatch.setattr(train, "build_dataset", refuse)
    before = stopped.last.read_bytes(), stopped.metrics.read_text()
    with pytest.raises(UserError, match="already holds a run"):
        train.main([str(tmp_path / "config.yaml")])
    assert (stopped.last.read_bytes(), stopped.metrics.read_text()) == before


def test_a_folder_that_another_program_trains_into_is_left_alone(stopped, tmp_path):
    code = ("import sys; from cosa.training.run_folder import RunFolder\n"
            "with RunFolder(sys.argv[1]).locked(): print('locked', flush=True); sys.stdin.read()")
    fresh = configure(tmp_path, name="fresh")
    for folder, arguments in ((stopped.path, ["--resume", str(stopped.path)]),
                              (tmp_path / "runs" / "fresh", [fresh])):
        command = [sys.executable, "-c", code, str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              cwd=ROOT) as other:
            assert other.stdout.readline() == b"locked\n"
            before = {path: path.read_bytes() for path in folder.glob("*.*")}
            with pytest.raises(UserError, match="another program trains into"):
                train.main(arguments)
            assert {path: path.read_bytes() for path in folder.glob("*.*")} == before
            other.kill()


def test_a_run_that_saved_nothing_starts_anew(tmp_path):
    config = configure(tmp_path, train={"iterations": 2})
    run = RunFolder(tmp_path / "runs" / "tiny")
    run.path.mkdir(parents=True)
    run.metrics.write_text('{"iteration": 77, "loss": 1.0}\n')
    assert train.main([config]) == 0
    assert [line["iteration"] for line in training_lines(run)] == [1, 2]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["optimizer.lrr=3"], "unknown key 'optimizer.lrr'"),
        (["--resume", "nowhere/run"], "nowhere/run holds no run to resume"),
        (["device=cuda:99"], "device 'cuda:99' is not there"),
        (["augment.crop_size=50"], "augment.crop_size=50 is no multiple of the encoder's stride 8"),
        (["evaluate.coexistence_classes=[boat, brd]"], "no class 'brd'"),
        (["model.encoder=vit_nonsense"], "vit_nonsense"),
        (["model.aux_layer=9"], "model.aux_layer=9"),
        (["loss.cls=0", "loss.cls_aux=0"], "no loss term"),
        (["extra.yaml"], "'extra.yaml' is not an override"),
        (["model.pretrained=true", "model.weights=nowhere.pth"], "nowhere.pth"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(train_program, tmp_path, arguments, words):
    config = [] if "--resume" in arguments else [configure(tmp_path)]
    code, _, errors = train_program(*config, *arguments)
    assert code == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1 and words in errors
    assert not (tmp_path / "runs").exists(), "nothing was begun"


def test_resume_and_a_configuration_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="--resume takes its configuration from"):
        train.main([configure(tmp_path), "--resume", str(tmp_path)])


# Data


def test_masks_are_never_read_in_training(tmp_path, monkeypatch):
    read_masks = []
    original = ScenesDataset.mask

    def guarded(self, index):
        read_masks.append(self.names[index])
        return original(self, index)

    monkeypatch.setattr(ScenesDataset, "mask", guarded)
    assert train.main([configure(tmp_path)]) == 0
    assert {name.split("_")[0] for name in read_masks} == {"val", "test"}


@pytest.fixture
def folder_data(tmp_path):
    """A `folder` data set of ten scenes: (its folder, the data section)."""
    root = tmp_path / "data"
    export(ScenesDataset("train", seed=0, count=10, size=40), root)
    section = {"name": "folder", "root": str(root), "images": "images", "labels": "labels.csv",
               "classes": "classes.txt"}
    return root, section


def test_a_folder_of_images_trains_to_the_end(tmp_path, folder_data):
    config = configure(tmp_path, data=folder_data[1] | {"masks": "masks"})
    assert train.main([config]) == 0
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    assert 0 <= summary["miou"] <= 1 and summary["split"] == "val" and summary["images"] == 10


def test_images_without_masks_train_to_the_end(tmp_path, folder_data):
    root, section = folder_data
    for mask in (root / "masks").iterdir():
        mask.unlink()
    assert train.main([configure(tmp_path, data=section, train={"evaluate_every": 6})]) == 0
    run = RunFolder(tmp_path / "runs" / "tiny")
    summary = json.loads(run.summary.read_text())
    assert "miou" not in summary and 0 <= summary["classification_map"] <= 1
    assert summary["best_validation_score"] >= 0 and run.best.exists()


def test_a_label_that_names_no_class_stops_before_training(train_program, tmp_path, folder_data):
    root, section = folder_data
    with open(root / "labels.csv", "a") as file:
        (root / "images" / "train_00000.png").rename(root / "images" / "extra.png")
        file.write("extra.png,boot\n")
    text = (root / "labels.csv").read_text().splitlines(keepends=True)
    (root / "labels.csv").write_text("".join(t for t in text if "train_00000" not in t))
    code, _, errors = train_program(configure(tmp_path, data=section))
    note, error = errors.splitlines()
    assert code == 2 and note.startswith("note: ") and error.startswith("error: ")
    assert "labels.csv, line 11" in error and "'boot' is no class" in error
    assert not (tmp_path / "runs").exists()


def test_classes_must_be_those_of_the_validation_images(tmp_path, monkeypatch):
    original = ScenesDataset.__init__

    def changed(self, split, **kwargs):
        original(self, split, **kwargs)
        if split == "val":
            self.classes = self.classes[::-1]

    monkeypatch.setattr(ScenesDataset, "__init__", changed)
    with pytest.raises(UserError, match="different classes"):
        train.main([configure(tmp_path)])


# What is kept


def test_best_holds_the_assignment_network_at_its_best_score(tmp_path, monkeypatch):
    seen = fake_scores(monkeypatch, 0.5, 0.3, 0.4, 0.9)
    assert train.main([configure(tmp_path, train={"evaluate_every": 4})]) == 0
    run = RunFolder(tmp_path / "runs" / "tiny")
    kept = read(run.best)["assignment"]
    assert len(seen) == 4, "twice on the way, then validation and test images"
    assert all(torch.equal(kept[key], value) for key, value in seen[0].items())
    assert any(not torch.equal(kept[key], value) for key, value in seen[1].items())
    summary = json.loads(run.summary.read_text())
    assert summary["best_validation_score"] == 0.5, "test scores choose nothing"
    assert summary["miou"] == 0.9


def test_of_equally_good_networks_the_earlier_is_kept(tmp_path, monkeypatch):
    seen = fake_scores(monkeypatch, 0.4, 0.5, 0.5, 0.5)
    assert train.main([configure(tmp_path, train={"evaluate_every": 4})]) == 0
    kept = read(tmp_path / "runs" / "tiny" / "best.pth")["assignment"]
    same = [all(torch.equal(kept[key], value) for key, value in network.items())
            for network in seen]
    assert same == [False, True, False, False], "iterations 4, 8 and 12, and the test images"


def test_the_default_configuration_is_the_demo():
    assert (ROOT / train.DEFAULT_CONFIG).is_file()
    assert Path(train.DEFAULT_CONFIG).stem == "demo"
