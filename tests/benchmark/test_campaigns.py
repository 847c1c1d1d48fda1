import errno
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from cosa import checkpoint
from cosa.benchmark import stamp, tables
from cosa.benchmark.campaigns import ablation, ablation_table, campaign, supervised
from cosa.benchmark.campaigns.peak import peak_iteration
from cosa.benchmark.campaigns.runner import MARKER
from cosa.benchmark.campaigns.verdicts import judge, verdicts
from cosa.benchmark.stamp import Revision
from cosa.benchmark.timings import threshold
from cosa.config import load_config, to_dict
from cosa.core.errors import UserError
from cosa.core.text import aligned
from cosa.data import SegmentationDataset
from cosa.data.images import LazyFile, open_image
from cosa.data.loader import TrainingViews
from cosa.data.scenes.dataset import ScenesDataset
from cosa.training import run_folder
from cosa.training.build import assemble
from tests.helpers.tiny import BENCHMARK_TINY

START, END = tables.markers("ablation")
REVISION = Revision("0123456789abcdef", "")


class ColourCoded(SegmentationDataset):
    """Images that show their own mask: class 0 black, 1 red, 2 green, 255 blue."""

    COLOURS = {0: (0, 0, 0), 1: (255, 0, 0), 2: (0, 255, 0), 255: (0, 0, 255)}

    def __init__(self, width=40, height=28, count=6):
        rng = np.random.default_rng(3)
        coarse = rng.choice([0, 1, 2, 255], (count, height // 4, width // 4)).astype(np.uint8)
        self.masks = coarse.repeat(4, axis=1).repeat(4, axis=2)
        self.classes, self.has_masks = ("red", "green"), True
        self.names = [str(i) for i in range(count)]
        self.labels = np.ones((count, 2), np.uint8)

    def __len__(self):
        return len(self.masks)

    def image(self, index):
        pixels = np.zeros((*self.masks[index].shape, 3), np.uint8)
        for value, colour in self.COLOURS.items():
            pixels[self.masks[index] == value] = colour
        return Image.fromarray(pixels)

    def mask(self, index):
        return self.masks[index]


AUGMENT = dict(crop_size=32, scale_min=0.5, scale_max=2.0, flip=0.5, blur=0.0, strong=False)


def test_the_mask_follows_the_views():
    """Away from the edges of the blocks every pixel has the colour of its mask value."""
    stream = supervised.SupervisedViews(ColourCoded(), seed=1, **AUGMENT)
    checked, seen = 0, set()
    for position in range(60):
        sample = stream[position]
        mask = sample["mask"]
        assert mask.shape == (32, 32) and mask.dtype == torch.int64
        assert (mask[~sample["valid"]] == 255).all()
        pixels = sample["strong"].float()
        for value, colour in ColourCoded.COLOURS.items():
            exact = ((pixels - torch.tensor(colour)).abs().amax(-1) < 1) & sample["valid"]
            assert (mask[exact] == value).all()
            checked += int(exact.sum())
        seen.update(mask.unique().tolist())
    assert seen == {0, 1, 2, 255}
    assert checked > 60 * 200


class Photographs(ColourCoded):
    """The same in large, as JPEG files that cameras have turned."""

    def __init__(self, folder):
        super().__init__(width=24, height=16)
        self.masks = self.masks.repeat(9, axis=1).repeat(9, axis=2)
        self.folder = folder

    def open_image(self, index):
        exif = Image.Exif()
        exif[0x0112] = (6, 3, 2, 8)[index % 4]
        turn = {6: Image.ROTATE_90, 3: Image.ROTATE_180, 2: Image.FLIP_LEFT_RIGHT,
                8: Image.ROTATE_270}[exif[0x0112]]
        path = self.folder / f"{index}.jpg"
        self.image(index).transpose(turn).save(path, quality=95, subsampling=0, exif=exif)
        return open_image(path)


def test_the_mask_follows_images_that_are_decoded_in_small(tmp_path, monkeypatch):
    reductions = set()
    decode = LazyFile.decode
    monkeypatch.setattr(LazyFile, "decode", lambda image, shrink: (
        (decoded := decode(image, shrink)), reductions.add(decoded.reduction))[0])
    options = AUGMENT | {"scale_min": 0.1, "scale_max": 0.4}
    stream, checked = supervised.SupervisedViews(Photographs(tmp_path), seed=1, **options), 0
    for position in range(40):
        sample = stream[position]
        for value, colour in ColourCoded.COLOURS.items():
            apart = (sample["strong"].float() - torch.tensor(colour)).abs().amax(-1)
            near = (apart < 60) & sample["valid"]
            assert (sample["mask"][near] == value).all()
            checked += int(near.sum())
    assert reductions == {1, 2, 4} and checked > 40 * 100


def test_the_supervised_stream_shows_what_training_shows():
    dataset = ColourCoded()
    options = {**AUGMENT, "strong": True, "blur": 0.5}
    plain = TrainingViews(dataset, 7, **options)
    with_masks = supervised.SupervisedViews(dataset, 7, **options)
    for position in range(20):
        expected, sample = plain[position], with_masks[position]
        assert set(sample) == set(expected) | {"mask"}
        assert all(torch.equal(torch.as_tensor(sample[k]), torch.as_tensor(v))
                   for k, v in expected.items())


def test_a_mask_of_another_size_is_named():
    dataset = ColourCoded()
    dataset.masks = dataset.masks[:, :-2]
    dataset.image = lambda index: Image.new("RGB", (40, 28))
    with pytest.raises(UserError, match="mask of 0 is 40x26"):
        supervised.SupervisedViews(dataset, 0, **AUGMENT).views(0, np.random.default_rng(0))


def supervised_losses(tiny, dataset, *more):
    config = load_config(tiny, [*BENCHMARK_TINY, *more])
    torch.manual_seed(0)
    network = checkpoint.build_network(to_dict(config), len(dataset.classes)).train()
    cotraining = assemble(network, config)
    before = cotraining.assignment.network.decoder.conv8.weight.clone()
    values = list(supervised.train_steps(cotraining, config, dataset, torch.device("cpu")))
    return values, before, cotraining


def test_supervised_training_lowers_the_loss_and_moves_the_average(tiny):
    values, before, cotraining = supervised_losses(
        tiny, ScenesDataset("train", 0, 8, 48), "train.iterations=40", "optimizer.lr=1e-3",
        "augment.strong=false", "train.batch_size=4", "teacher.momentum=0.5",
    )
    assert len(values) == 40
    assert np.mean(values[-8:]) < 0.7 * np.mean(values[:4])
    assert not torch.equal(before, cotraining.assignment.network.decoder.conv8.weight)


def test_supervised_training_that_diverges_is_a_users_mistake(tiny, monkeypatch):
    monkeypatch.setattr(supervised.losses, "cam_to_seg", lambda seg, *_, valid: seg.sum() * 1e39)
    with pytest.raises(UserError, match="diverged: the loss is not finite at iteration 0"):
        supervised_losses(tiny, ScenesDataset("train", 0, 4, 48))


def test_supervised_training_needs_masks(tiny):
    dataset = ScenesDataset("train", 0, 4, 48)
    dataset.has_masks = False
    with pytest.raises(UserError, match="needs the masks"):
        supervised_losses(tiny, dataset)


# Verdicts


def scores(**rows):
    """row=[values]: the miou of each seed."""
    return {row.replace("_", "-"): {s: {"miou": v} for s, v in enumerate(values)}
            for row, values in rows.items()}


def verdict(results, words):
    (found,) = [v for v in verdicts(results) if words in v.claim]
    return found


def test_judge_by_two_standard_errors():
    # mean 0.02, std 0.01, standard error 0.01 / sqrt(3)
    status, mean, error = judge([0.01, 0.02, 0.03])
    assert status == "holds"
    assert mean == pytest.approx(0.02) and error == pytest.approx(0.01 / math.sqrt(3))
    assert judge([-0.01, -0.02, -0.03])[0] == "does not hold"
    assert judge([-0.01, 0.0, 0.03])[0] == "within noise"
    assert judge([0.0, 0.0])[0] == "within noise"
    assert judge([0.5])[0].startswith("not measured")


def test_share_of_the_supervised_bound():
    results = scores(cosa=[0.68, 0.72, 0.70], supervised=[0.80, 0.80, 0.80])
    assert verdict(results, "80 %").status == "holds"
    assert "87.5" in verdict(results, "80 %").details
    # 0.85, 0.90, 0.875 are 2.5 points below 0.9, SE 1.44: less than two of them
    assert verdict(results, "90 %").status == "within noise"
    results = scores(cosa=[0.60, 0.61, 0.60], supervised=[0.80, 0.80, 0.80])
    assert verdict(results, "80 %").status == "does not hold"


def test_the_margin_over_classification():
    peak = {s: {"cam_best_miou": 0.5, "miou": 0.0} for s in range(3)}
    good = scores(cosa=[0.65, 0.66, 0.67]) | {"classification-only-peak": peak}
    assert verdict(good, "10 points above").status == "holds"
    assert "+16.0" in verdict(good, "10 points above").details
    bad = scores(cosa=[0.55, 0.56, 0.57]) | {"classification-only-peak": peak}
    assert verdict(bad, "10 points above").status == "does not hold"


def test_the_dynamic_threshold_meets_the_best_fixed_one():
    rows = dict(fixed_0_3=[0.5, 0.5, 0.5], fixed_0_5=[0.7, 0.7, 0.7])
    better = verdict(scores(cosa=[0.74, 0.75, 0.76], **rows), "dynamic")
    assert better.status == "holds" and "+5.0" in better.details and "0-5" in better.details
    equal = verdict(scores(cosa=[0.69, 0.70, 0.71], **rows), "dynamic")
    assert equal.status == "within noise"
    assert "pooled std 0.7" in equal.details  # sqrt((1 + 0) / 2)
    assert verdict(scores(cosa=[0.6, 0.61, 0.6], **rows), "dynamic").status == "does not hold"


def test_pairs_are_by_seed_and_gaps_are_admitted():
    results = scores(cosa=[0.5, 0.7, 0.9], without_raw=[0.49, 0.69])
    raw = verdict(results, "RAW")
    assert raw.status == "holds" and "2 seeds" in raw.details
    assert verdict(results, "CSC helps coexistence").status == "not measured"
    assert all(v.status == "not measured" for v in verdicts({}))


# Report


def test_the_table():
    results = scores(cosa=[0.6, 0.7], supervised=[0.8, 0.8])
    results["classification-only-end"] = {0: {"miou": 0.01, "cam_best_miou": 0.4}}
    head, bound, alone, cosa = ablation_table.table(results)
    assert head[:3] == ["row", "mIoU", "% of supervised"]
    assert bound[:3] == ["fully supervised", "80.0 ± 0.0", "100.0"]
    assert alone[1] == tables.NOTHING and "40.0" in alone
    assert cosa[:3] == ["CoSA", "65.0 ± 7.1", "81.2"]
    lines = aligned([head, bound, alone, cosa]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert tables.markdown([head, bound]).splitlines()[1].count("|") == len(head) + 1


def test_the_report_keeps_other_content(tmp_path):
    path = tmp_path / "docs" / "benchmarks.md"
    tables.write_report(path, "one", "ablation")
    assert path.read_text() == f"# Benchmarks\n\n{START}\none\n{END}\n"
    path.write_text("Before\n" + path.read_text() + "After ü\n", encoding="utf-8")
    tables.write_report(path, "two", "ablation")
    assert path.read_text(encoding="utf-8") == (
        f"Before\n# Benchmarks\n\n{START}\ntwo\n{END}\nAfter ü\n"
    )
    assert [p.name for p in path.parent.iterdir()] == ["benchmarks.md"]


def test_names_do_not_damage_the_report(tmp_path):
    path, name = tmp_path / "report.md", f"a|b\n<i>\x1b[2J `日本` {END}"
    for section in ("one", tables.markdown([["row", "IoU"], [name, "1.0"]]) + f"\n\n{END}\udcff"):
        tables.write_report(path, section, "ablation")
    assert path.read_text(encoding="utf-8") == (
        f"# Benchmarks\n\n{START}\n| row | IoU |\n|---|---:|\n"
        r"| a\|b\n&lt;i>\x1b[2J `日本` &lt;!-- ablation:end --> | 1.0 |"
        f"\n\n&lt;!-- ablation:end -->\\udcff\n{END}\n"
    )


@pytest.mark.parametrize("text", [
    START, END, f"{END}\n{START}",
    f"{START}\n{END}\n{START}\n{END}",
])
def test_damaged_markers_are_refused(tmp_path, text):
    path = tmp_path / "report.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="report.md"):
        tables.write_report(path, "new", "ablation")
    assert path.read_text(encoding="utf-8") == text


# Rows and command line


def test_the_peak_is_the_first_best_validation():
    values = [(10, 0.3), (20, 0.5), (30, None), (40, 0.5), (50, 0.1)]
    evaluations = [{"iteration": i, "cam_best_miou": v} for i, v in values]
    assert peak_iteration([{"iteration": 1}, *evaluations]) == 20
    assert peak_iteration([]) == 0


@pytest.mark.parametrize("arguments, words", [
    (["--rows", "cosa", "fixed-0.4"], "fixed-0.4"),
    (["--seeds", "one"], "whole numbers"),
    (["name=mine"], "leave out name"),
    (["--rows", "cosa", "output=mine"], "leave out output"),
    (["--config", "absent.yaml"], "absent.yaml"),
    (["train.iterationz=3"], "train.iterations"),
])
def test_mistakes_are_told_before_anything_runs(tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        ablation.main([*arguments, "--output" if "--rows" in arguments else "--report",
                       str(tmp_path / "x")])
    assert not list(tmp_path.iterdir())


def test_the_rows_change_what_they_say(tiny):
    runs = campaign.plan(ablation.ROWS, ablation.commands, tiny, BENCHMARK_TINY,
                         list(ablation.ROWS), [0, 5], "out", 0, REVISION)
    assert len(runs) == 18 and [run.config.seed for run in runs] == [0] * 9 + [5] * 9
    assert len({run.folder for run in runs}) == 18
    assert all(run.identity()["revision"]["commit"] == REVISION.commit for run in runs)
    by_row = {run.row: run.config for run in runs[9:]}
    assert by_row["without-swapping"].loss.s2c == 0 and by_row["cosa"].loss.s2c > 0
    assert by_row["without-csc"].loss.csc == 0 and not by_row["without-raw"].method.raw
    assert by_row["fixed-0.7"].threshold.fixed == 0.7
    assert not by_row["fixed-0.7"].threshold.dynamic and by_row["cosa"].threshold.dynamic
    alone = by_row["classification-only"]
    assert (alone.loss.cls, alone.loss.c2s, alone.loss.c2s_aux) == (1, 0, 0)
    assert {c.data.scenes_seed for c in by_row.values()} == {0}


def test_the_ablation_end_to_end(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stamp, "revision", lambda report: REVISION)
    output, target = tmp_path / "out", tmp_path / "docs" / "benchmarks.md"
    arguments = ["--config", tiny, "--seeds", "0", "--output", str(output), "--report",
                 str(target), "--rows", "supervised", "classification-only", *BENCHMARK_TINY]
    assert ablation.main(arguments) == 0
    text = target.read_text(encoding="utf-8")
    assert text.startswith("# Benchmarks") and END in text
    assert "| classification only, at its peak |" in text and "table is on test scenes" in text
    assert "not measured" in text and "tiny.yaml" in text and "; revision 0123456789; " in text
    assert "fully supervised" in capsys.readouterr().out

    numbers = json.loads((output / "ablation.json").read_text())
    bound = numbers["runs"]["supervised"]["0"]
    assert bound["images"] == 3 and 0 <= bound["miou"] <= 1
    peak = numbers["runs"]["classification-only-peak"]["0"]
    assert peak["split"] == "test" and 1 <= peak["iteration"] <= 4
    end = numbers["runs"]["classification-only-end"]["0"]
    assert end["xi"] is end["xi_aux"] is end["cam_miou"] is peak["cam_miou"] is None
    assert 0 < end["training_seconds"] < end["seconds"], "without the evaluations on the way"
    trained = checkpoint.load(output / "supervised-seed0" / "supervised.pth")
    assert trained.config.name == "supervised-seed0"

    written = (output / "supervised-seed0" / "summary.json").stat().st_mtime_ns
    assert ablation.main(arguments) == 0
    assert (output / "supervised-seed0" / "summary.json").stat().st_mtime_ns == written

    monkeypatch.setattr(stamp, "revision", lambda report: Revision("fedcba9876543210", ""))
    with pytest.raises(UserError, match="supervised-seed0 holds .* another state of the program"):
        ablation.main(arguments)
    assert target.read_text(encoding="utf-8") == text


def test_no_table_is_written_when_the_program_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(stamp, "revision", lambda report: REVISION)
    given = campaign.parse("ablation", "", ablation.ROWS, [
        "--output", str(tmp_path / "out"), "--report", str(tmp_path / "report.md"),
    ])
    started = stamp.begin("ablation", [], given.report)
    campaign.publish(started, given, {}, [], [[["row"]]], "section")
    assert "section" in (tmp_path / "report.md").read_text()
    monkeypatch.setattr(stamp, "revision", lambda report: Revision(REVISION.commit, "1" * 64))
    with pytest.raises(UserError, match="the program was changed while the benchmark ran"):
        campaign.publish(started, given, {}, [], [[["row"]]], "another")
    assert "another" not in (tmp_path / "report.md").read_text()


def test_runs_stop_when_the_program_changes(tiny, tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(stamp, "revision", lambda report: looks.append(report) or Revision(
        REVISION.commit, "" if len(looks) < 3 else "1" * 64))
    arguments = ["--config", tiny, "--seeds", "0", "1", "--output", str(tmp_path / "out"),
                 "--report", str(tmp_path / "report.md"), "--jobs", "1", "--rows", "supervised",
                 *BENCHMARK_TINY]
    with pytest.raises(UserError, match="the program was changed while the benchmark ran"):
        ablation.main(arguments)
    assert set(looks) == {str(tmp_path / "report.md")}
    out = tmp_path / "out"
    assert not (tmp_path / "report.md").exists() and not (out / "ablation.json").exists()
    assert json.loads((out / "supervised-seed0" / MARKER).read_text())["finished"] is False
    assert not (out / "supervised-seed1").exists()


def test_two_campaigns_never_fill_one_folder(tiny, tmp_path, monkeypatch):
    def held(*_):
        raise BlockingIOError(errno.EAGAIN, "held")

    monkeypatch.setattr(run_folder.fcntl, "lockf", held)
    arguments = ["--config", tiny, "--seeds", "0", "--output", str(tmp_path / "out"),
                 "--report", str(tmp_path / "report.md"), "--rows", "supervised", *BENCHMARK_TINY]
    with pytest.raises(UserError, match="another program trains into .*out at this moment"):
        ablation.main(arguments)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_the_threshold_is_timed_against_scikit_learn(tmp_path, capsys):
    report = tmp_path / "report.md"
    arguments = ["--queue", "10", "--updates", "5", "--report", str(report)]
    assert threshold.main(arguments) == 0
    assert "times as long" in capsys.readouterr().out
    text = report.read_text()
    assert text.count("threshold:start") == 1 and "## Dynamic threshold" in text
    found = threshold.measure(10, 5)
    assert found["xi"] == pytest.approx(found["xi_sklearn"], abs=0.01)
    assert found["ratio"] > 3
