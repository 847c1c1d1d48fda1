import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cosa import checkpoint
from cosa.benchmark import stamp
from cosa.benchmark.campaigns import campaign, photograph_scores, photographs
from cosa.benchmark.campaigns.ablation_table import NAMES
from cosa.benchmark.stamp import Revision
from cosa.config import load_config, settled, to_dict, to_yaml
from cosa.core.errors import UserError
from cosa.crf import dense_crf
from cosa.data import build_dataset
from cosa.data.scenes.dataset import ScenesDataset, export
from cosa.evaluate import spread
from cosa.metrics import SegmentationMetrics
from cosa.predict import multi_scale
from tests.helpers.tiny import BENCHMARK_TINY

REVISION = Revision("0123456789abcdef", "")
TINY = [option for option in BENCHMARK_TINY if not option.startswith("data.scenes")]


@pytest.fixture
def voc(tmp_path):
    """Six photographs in VOC's layout, to train on 0 and 1 and to score on the others."""
    root = tmp_path / "voc"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name, kind in zip("012345", ("cat", "boat") * 3, strict=True):
        pixels = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        mask = np.zeros((40, 56), np.uint8)
        mask[10:30, 10:40] = {"cat": 8, "boat": 4}[kind]
        pixels[mask > 0] //= 4
        Image.fromarray(pixels).save(root / f"JPEGImages/{name}.jpg")
        Image.fromarray(mask).save(root / f"SegmentationClass/{name}.png")
        (root / f"Annotations/{name}.xml").write_text(
            f"<annotation><object><name>{kind}</name></object></annotation>")
    (root / "ImageSets/Segmentation/train.txt").write_text("0\n1\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("5\n4\n2\n3\n")
    return root


@pytest.fixture
def folder(tmp_path):
    """Scenes as files: four to train on, three to score on."""
    export(ScenesDataset("train", 0, 4, 48), tmp_path / "own")
    export(ScenesDataset("val", 0, 3, 48), tmp_path / "own" / "val")
    return tmp_path / "own"


@pytest.fixture
def empty(tmp_path):
    path = tmp_path / "photographs.yaml"
    path.write_text("name: photographs\n", encoding="utf-8")
    return str(path)


def configured(folder, config, *given):
    return load_config(config, photographs.overrides_of(str(folder), config, given))


# Data


def test_a_folder_in_the_layout_of_voc(voc, empty):
    data = configured(voc, empty).data
    assert (data.name, data.root, data.train_split) == ("voc", str(voc), "train")
    assert data.hold_out
    assert build_dataset(data, "val").names == ["2", "3"]
    assert build_dataset(data, "test").names == ["4", "5"]
    assert photographs.count_images(configured(voc, empty), ["cosa"]) == {
        "train": 2, "masked": 2, "val": 2, "test": 2
    }
    voc.rename(voc.parent / "VOC2012")
    assert build_dataset(configured(voc.parent, empty).data, "train").names == ["0", "1"]


def test_the_longer_list_of_training_images_is_taken_where_it_is(voc, empty):
    lists = voc / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text("1\n2\n")
    data = configured(voc, empty).data
    assert data.train_split == "train_aug" and build_dataset(data, "train").names == ["1"]
    assert configured(voc, empty, "data.train_split=train").data.train_split == "train"


def test_classes_of_coexistence_are_those_of_voc_unless_others_are_chosen(voc, folder, empty):
    assert configured(voc, empty).evaluate.coexistence_classes == ("bird", "boat", "train")
    chosen = configured(voc, empty, "evaluate.coexistence_classes=[cow]")
    assert chosen.evaluate.coexistence_classes == ("cow",)
    assert configured(folder, empty).evaluate.coexistence_classes == ()


def test_a_folder_of_ones_own(folder, empty):
    config = configured(folder, empty)
    assert (config.data.name, config.data.classes) == ("folder", "classes.txt")
    assert config.data.masks == "masks" and config.data.val_masks == "val/masks"
    assert photographs.count_images(config, ["supervised"]) == {
        "train": 4, "masked": 4, "val": 2, "test": 1
    }


def test_what_is_no_folder_of_photographs(voc, folder, tmp_path, empty):
    with pytest.raises(UserError, match="absent: there is no such folder"):
        photographs.data_options(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="holds neither JPEGImages .* nor images and labels.csv"):
        photographs.data_options(str(folder / "images"))
    (voc / "ImageSets" / "Segmentation").rename(voc / "elsewhere")
    with pytest.raises(UserError, match="no ImageSets/Segmentation"):
        photographs.data_options(str(voc))


def test_what_cannot_be_scored_is_told_before_anything_runs(folder, empty):
    def count(*rows):
        return photographs.count_images(configured(folder, empty), rows)

    (folder / "masks").rename(folder / "elsewhere")
    with pytest.raises(UserError, match="no training image has a mask.*`supervised`.*--rows"):
        count("cosa", "supervised")
    assert count("cosa")["masked"] == 0
    last = sorted((folder / "val" / "masks").iterdir())[-1]
    last.unlink()
    with pytest.raises(UserError, match="second half .* has a mask.*data.val_masks"):
        count("cosa")
    (folder / "val").rename(folder / "gone")
    with pytest.raises(UserError, match="others than those to train on.*val/images"):
        count("cosa")


# Rows


def test_rows_are_those_of_the_ablation_and_the_regularizers(voc, empty):
    assert list(photographs.ROWS)[:4] == ["supervised", "classification-only", "cosa",
                                          "without-swapping"]
    overrides = photographs.overrides_of(str(voc), empty, ["model.pretrained=false"])
    runs = campaign.plan(
        photographs.ROWS, lambda *arguments: (), empty, overrides, list(photographs.ROWS), [0],
        "out", 0, REVISION, {"train_images": 7},
    )
    assert {run.row for run in runs} == set(photographs.ROWS) and len(runs) == 17
    on = {run.row: {name for name, options in to_dict(run.config.regularizers).items()
                    if options["weight"] > 0} for run in runs}
    assert on["isl"] == {"isl"} and on["plca"] == {"plca"} and on["cosa"] == set()
    assert on["all"] == {"isl", "fsl", "plda", "csd", "plca", "dense_energy"}
    assert runs[0].identity()["train_images"] == 7
    assert all(run.config.data.hold_out for run in runs)


def test_regularizers_are_fitted_to_schedule_and_crops(empty):
    """The examples are of crops of 256, with Seg2CAM from iteration 330 on."""
    base = load_config(empty, ["augment.crop_size=512", "method.s2c_start=660"])
    found = load_config(empty, photographs.regularizer_changes("all", base)).regularizers
    example = settled(load_config("configs/photographs_regularizers.yaml"), 311).regularizers
    assert example.fsl.start == 225 and found.fsl.start == 450
    assert found.dense_energy.sigma_xy == 2 * example.dense_energy.sigma_xy
    assert found.dense_energy.weight == pytest.approx(example.dense_energy.weight / 16)
    assert found.plca == example.plca and found.isl == example.isl
    alone = photographs.regularizer_changes("fsl", base)
    assert sorted(change.split("=")[0] for change in alone) == [
        "regularizers.fsl.start", "regularizers.fsl.weight"]


def test_all_rows_have_the_schedule_of_the_images_that_there_are(voc, monkeypatch):
    """With 311 of them, the iterations by which the configuration was chosen; for every row."""
    labels = np.ones((311, 20), np.uint8)
    monkeypatch.setattr(campaign, "build_dataset", lambda data, split: SimpleNamespace(
        labels=labels))
    given = SimpleNamespace(config=photographs.DEFAULT_CONFIG)
    given.overrides = photographs.overrides_of(str(voc), given.config, [])
    campaign.settle(given)
    before = list(given.overrides)
    campaign.settle(given)
    assert given.overrides == before, "there is nothing left to settle"
    runs = campaign.plan(photographs.ROWS, lambda *arguments: (), given.config, given.overrides,
                         list(photographs.ROWS), [0], "out", 0, REVISION)
    for run in runs:
        train, method = run.config.train, run.config.method
        assert (train.passes, train.iterations, train.batch_size) == (0, 540, 6)
        assert (method.cls_iterations, method.s2c_start) == (180, 330)
        every = 45 if run.row == "classification-only" else 270
        assert (train.evaluate_every, train.log_every) == (every, 20)
        assert run.config.optimizer.warmup_iterations == 20
        assert run.config.regularizers.fsl.start == (225 if run.row in ("fsl", "all") else 0)


def test_a_schedule_of_ones_own_is_kept(folder):
    given = SimpleNamespace(config=photographs.DEFAULT_CONFIG)
    given.overrides = photographs.overrides_of(
        str(folder), given.config, ["train.iterations=30", "method.s2c_start=7"])
    campaign.settle(given)
    config = load_config(given.config, given.overrides)
    assert (config.train.iterations, config.method.s2c_start) == (30, 7)
    assert (config.method.cls_iterations, config.train.evaluate_every) == (10, 15)


def test_only_rows_of_regularizers_have_one(tmp_path):
    """Even if the configuration switches one on, as that for one's own photographs does."""
    config = tmp_path / "own.yaml"
    config.write_text("regularizers: {isl: {weight: 0.3}, fsl: {start: 4}}", encoding="utf-8")
    base = load_config(config)
    for row in ("cosa", "without-csc", "plda", "isl"):
        found = load_config(config, photographs.ROWS[row](base)).regularizers
        on = [name for name, options in to_dict(found).items() if options["weight"] > 0]
        assert on == [row] * (row in photographs.REGULARIZERS)


@pytest.mark.parametrize(("configured", "steps"), [(0, 0), (1, 1), (5, 2)])
def test_the_bound_is_spread_by_two_steps_at_most(empty, configured, steps):
    own = [f"model.seg_steps={configured}"]
    changes = photographs.ROWS["supervised"](load_config(empty, own))
    assert load_config(empty, [*own, *changes]).model.seg_steps == steps


def test_every_row_is_scored_where_it_trains_something(tiny):
    def further(row):
        *_, last = photographs.commands(row, tiny, ["name=run", "output=out"], 9)
        return " ".join(last).partition("cosa.benchmark ")[2]

    assert further("supervised") == (
        "photograph_scores out/run/supervised.pth --train-images 0 --crf")
    assert further("classification-only") == (
        "photograph_scores out/run/last.pth out/run/best.pth --train-images 9 --plain-cam")
    assert further("plda") == "photograph_scores out/run/last.pth --train-images 9 --crf"


# Verdicts and tables


def lines(**rows):
    """row=(score, values): a score of each seed."""
    found = {}
    for row, (key, values) in rows.items():
        found[row.replace("_", "-")] = {seed: {key: v} for seed, v in enumerate(values)}
    return found


def verdict(results, words):
    (found,) = [v for v in photographs.verdicts(results) if words in v.claim]
    return found


def test_the_share_and_the_level():
    # 0.9, 0.875 and 0.95 of the bound: 2.5 to 10 points above 85 %, mean 90.8
    results = lines(cosa=("miou", [0.54, 0.525, 0.57]), supervised=("miou", [0.6, 0.6, 0.6]))
    assert verdict(results, "85 %").status == "holds"
    assert "90.8" in verdict(results, "85 %").details
    assert verdict(results, "90 %").status == "within noise"
    assert verdict(results, "label-free mIoU of 45").status == "holds"
    assert verdict(results, "label-free mIoU of 45").details.startswith("54.5 ± 1.3 (SE) %")
    low = lines(cosa=("miou", [0.40, 0.41, 0.42]))
    assert verdict(low, "label-free mIoU of 45").status == "does not hold"
    assert verdict(low, "85 %").status == "not measured"


def test_against_classification_at_its_peak():
    peak = lines(classification_only_peak=("cam_best_miou", [0.40, 0.40, 0.40]))
    cosa = {seed: {"miou": 0.44 + seed / 1000, "cam_best_miou": 0.42} for seed in range(3)}
    results = peak | {"cosa": cosa}
    assert verdict(results, "5 points above").status == "does not hold"
    assert "+4.1" in verdict(results, "5 points above").details
    assert verdict(results, "CAM at the end").status == "holds"
    assert verdict(results, "before they are spread").status == "not measured"
    results["classification-only-peak"] = {
        seed: {**scores, "plain_cam_best_miou": 0.35}
        for seed, scores in results["classification-only-peak"].items()
    }
    assert verdict(results, "before they are spread").status == "holds"


def test_the_signs_of_pseudo_labels_and_segmentation():
    def scores(cpl, miou):
        return {seed: {"train_cam_miou": cpl + seed / 100, "miou": miou + seed / 100}
                for seed in range(3)}

    results = {"cosa": scores(0.6, 0.5), "without-swapping": scores(0.5, 0.55),
               "without-raw": scores(0.55, 0.5), "fixed-0.3": scores(0.5, 0.6),
               "fixed-0.7": scores(0.65, 0.4)}
    status = {v.claim: v.status for v in photographs.verdicts(results)}
    assert status["swapping (Seg2CAM) helps (CPL on training images)"] == "holds"
    assert status["swapping (Seg2CAM) helps (mIoU)"] == "does not hold"
    assert status["RAW helps (mIoU)"] == "within noise"
    assert status["CSC helps (mIoU)"] == "not measured"
    dynamic = [v for v in photographs.verdicts(results) if "dynamic" in v.claim]
    assert [v.details[:12] for v in dynamic] == ["to 0.7: -5.0", "to 0.3: -10."]


def test_the_regularizers_against_plain_cosa():
    results = lines(cosa=("miou", [0.5, 0.52, 0.51]), all=("miou", [0.53, 0.555, 0.54]),
                    plda=("miou", [0.51, 0.53, 0.52]))
    assert verdict(results, "together add 2 points").status == "holds"
    assert "+3.2" in verdict(results, "together add 2 points").details
    assert verdict(results, "+ PLDA helps").status == "holds"
    assert verdict(results, "+ CSD helps").status == "not measured"


def test_tables():
    results = {
        "supervised": {0: {"miou": 0.8, "crf_miou": 0.82, "jf": 0.7, "training_seconds": 9.6,
                           "cam_miou": 0.1}},
        "classification-only-end": {0: {"miou": 0.1, "cam_best_miou": 0.4, "peak_memory_mb": 800.4,
                                        "train_cam_best_miou": 0.5}},
        "classification-only-peak": {0: {"cam_best_miou": 0.45}},
        "cosa": {0: {"miou": 0.6, "crf_miou": 0.62, "train_cam_miou": 0.55, "cam_miou": 0.5}},
        "isl": {0: {"miou": 0.61}},
    }
    segmentation, cams, costs = photographs.all_tables(results)
    assert [row[0] for row in segmentation] == ["row", "fully supervised", "CoSA", "+ ISL"]
    cells = dict(zip(segmentation[0], segmentation[2], strict=True))
    assert cells["mIoU"] == "60.0" and cells["% of supervised"] == "75.0"
    assert cells["mIoU with CRF"] == "62.0" and cells["C-mIoU"] == "–"
    assert [row[0] for row in cams][1:3] == ["classification only, at the end",
                                             "classification only, at its peak"]
    cells = dict(zip(cams[0], cams[3], strict=True))
    assert cells["row"] == "CoSA" and cells["CPL, training"] == "55.0"
    assert dict(zip(cams[0], cams[1], strict=True))["CAM best, training"] == "50.0"
    assert costs[0] == ["row", "seconds", "peak MiB"]
    assert costs[1:3] == [["fully supervised", "10", "–"],
                          ["classification only, at the end", "–", "800"]]
    assert set(photographs.SEGMENTATION + photographs.CAMS + photographs.COSTS) <= set(NAMES)


def test_few_images_are_not_compared_with_published_scores():
    images = {"train": 311, "masked": 311, "val": 80, "test": 80}
    line = photographs.data_line(images, {"data": {"name": "voc"}}, 160)
    assert "311 training images (311 with a mask), 80 validation" in line
    assert "CPL of 160 training images" in line and "not comparable with published ones" in line
    own = photographs.data_line(images | {"masked": 12}, {"data": {"name": "folder"}}, 160)
    assert "CPL of 12 training images" in own and "not with published" in own


# Programs


def save_run(path, config):
    """A run folder with a network of random weights, whose threshold is 0.4."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    torch.manual_seed(0)
    dataset = build_dataset(config.data, "train")
    network = checkpoint.build_network(to_dict(config), len(dataset.classes)).eval()
    checkpoint.save_weights(path / "last.pth", network, config=to_dict(config),
                            classes=dataset.classes, palette=dataset.palette,
                            thresholds=(0.4, 0.6))
    return network


def test_the_further_scores_of_a_run(voc, empty, tmp_path):
    config = configured(voc, empty, *TINY)
    network = save_run(tmp_path / "run", config)
    weights = str(tmp_path / "run" / "last.pth")
    assert photograph_scores.main([weights, "--crf", "--train-images", "1"]) == 0
    scores = json.loads((tmp_path / "run" / "last-photographs.json").read_text())
    assert scores["train_images"] == 1 and 0 <= scores["train_cam_miou"] <= 1
    assert scores["train_cam_best_miou"] >= scores["train_cam_miou"]
    assert "train_jf" not in scores and scores["crf_images"] == 2

    test_set = build_dataset(config.data, "test")
    metrics = SegmentationMetrics(21, boundary=True)
    for index in range(2):
        image = np.asarray(test_set.image(index))
        square = torch.nn.functional.interpolate(
            torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255, (48, 48), mode="bilinear")
        logits = multi_scale(network, square, [1.0], config.evaluate.flip, maps=("seg",)).seg
        logits = torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear")[0]
        refined = dense_crf(image, (logits / 2).softmax(0), 1, (1, 1), (4, 121, 5))
        metrics.update(refined.argmax(0).byte(), test_set.mask(index))
    expected = metrics.compute()
    for key in ("miou", "boundary_f", "jf"):
        assert scores[f"crf_{key}"] == pytest.approx(expected[key], abs=1e-3), key

    assert photograph_scores.main([weights, "--train-images", "0"]) == 0
    assert json.loads((tmp_path / "run" / "last-photographs.json").read_text()) == {}
    with pytest.raises(SystemExit):
        photograph_scores.main([weights, "--train-images", "-1"])


def test_training_images_without_masks_have_no_score(folder, empty):
    (folder / "masks").rename(folder / "elsewhere")
    config = configured(folder, empty, *TINY)
    train_set = build_dataset(config.data, "train")
    assert photograph_scores.training_scores(SimpleNamespace(), config, train_set, 5) == {}


def test_spread_takes_all_parts():
    assert spread(range(8), 2) == [2, 6] and spread(range(3), 9) == [0, 1, 2]


def test_the_benchmark_end_to_end(voc, empty, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stamp, "revision", lambda report: REVISION)
    output, report = tmp_path / "out", tmp_path / "report.md"
    arguments = [str(voc), "--config", empty, "--seeds", "0", "--output", str(output), "--report",
                 str(report), "--train-images", "1", "--rows", "classification-only", "cosa",
                 *TINY]
    assert photographs.main(arguments) == 0
    text = report.read_text(encoding="utf-8")
    assert "## Photographs" in text and text.count("| CoSA |") == 3
    assert "the table is on the second, which no choice has seen" in text
    assert "test scenes" not in text and "CPL of 1 training images" in text
    assert "2 training images (2 with a mask), 2 validation images for choices, 2 for" in text
    assert "classification only, at its peak" in capsys.readouterr().out
    runs = json.loads((output / "photographs.json").read_text())["runs"]
    assert set(runs) == {"classification-only-end", "classification-only-peak", "cosa"}
    assert all(scores["0"]["split"] == "test" for scores in runs.values())
    cosa, peak = runs["cosa"]["0"], runs["classification-only-peak"]["0"]
    assert cosa["images"] == cosa["crf_images"] == 2 and cosa["train_images"] == 1
    assert 50 < cosa["peak_memory_mb"] < 10_000 and cosa["training_seconds"] > 0
    assert peak["train_cam_miou"] is None and 0 <= peak["train_cam_best_miou"] <= 1

    before = {path: path.stat().st_mtime_ns for path in output.glob("*/summary.json")}
    assert photographs.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    other = ["2" if argument == "1" else argument for argument in arguments]
    with pytest.raises(UserError, match="finished run of another configuration"):
        photographs.main(other)
