"""`benchmark inference` and `benchmark crf`: what they measure, compute and refuse."""

import importlib.util
import json
import os
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import cosa
from cosa.benchmark import tables as report
from cosa.benchmark.__main__ import main as benchmark
from cosa.benchmark.timings import (
    crf,
    crf_inputs,
    crf_memory,
    inference,
    inference_table,
    memory,
    random_network,
)
from cosa.benchmark.timings import inference_runs as runs
from cosa.benchmark.timings.flops import count_multi_scale
from cosa.config import load_config, to_yaml
from cosa.core.errors import UserError
from cosa.core.files import write_atomically
from cosa.crf import PRESETS, dense_crf
from cosa.data.scenes import dataset as scenes
from tests.helpers.inference import SCALES, SIZE, read, run_main, save, save_smooth, write_weights
from tests.helpers.tiny import BENCHMARK_TINY

COUNT = 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    return write_weights(path, classes=inference.SCENE_CLASSES)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of scenes with images/ and masks/."""
    folder = tmp_path_factory.mktemp("scenes")
    scenes.export(scenes.ScenesDataset("test", 0, COUNT, 40), folder)
    return folder


@pytest.fixture
def in_process(monkeypatch):
    """No process for each row: these take seconds to start."""
    for module in (runs, crf_memory):
        monkeypatch.setattr(module, "in_fresh_process", lambda function, *args: function(*args))


@pytest.fixture
def some_pydensecrf(monkeypatch):
    """Where the optional package is missing, the torch backend with every class stands in."""
    if importlib.util.find_spec("pydensecrf") is None:
        monkeypatch.setattr(crf.crf, "_pydensecrf",
                            lambda *arguments: crf.crf._mean_field(*arguments, negligible=0.0))


@pytest.fixture
def no_pydensecrf(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)


@pytest.fixture
def run(tmp_path, in_process, capsys):
    """Run a command of the benchmark: its JSON, its report and what it prints."""

    def run(command, *options):
        files = ("--report", tmp_path / "report.md", "--output", tmp_path / "out" / "numbers.json")
        assert benchmark([command, *map(str, (*options, *files, "--device", "cpu"))]) == 0
        text = (tmp_path / "report.md").read_text(encoding="utf-8")
        numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
        return numbers, text, capsys.readouterr().out

    return run


@pytest.fixture
def refusal(tmp_path):
    """The one sentence that says why the benchmark does not start."""

    def refusal(*options):
        report_file = tmp_path / "report.md"
        with pytest.raises(UserError) as caught:
            inference.main([*map(str, options), "--report", str(report_file), "--device", "cpu"])
        assert "\n" not in str(caught.value) and not report_file.exists()
        return str(caught.value)

    return refusal


# The whole


def test_a_folder_with_masks(run, weights, drawn, tmp_path, some_pydensecrf):
    numbers, text, out = run("inference", drawn / "images", "--weights", weights,
                             "--masks", drawn / "masks", "--batch-size", 2)
    assert numbers["images"] == COUNT and numbers["classes"] == 8 and numbers["size"] == SIZE
    assert numbers["weights"] == str(weights) and numbers["notes"] == []
    network = cosa.load(weights)
    many = count_multi_scale(network, SIZE, SCALES, True)
    assert numbers["flops"]["multi-scale"]["network"] == many.flops
    assert 0 < numbers["flops"]["single-scale"]["encoder"] < many.flops
    assert numbers["parameters"]["network"] == sum(p.numel() for p in network.parameters())
    expected = [(view, backend, iterations) for view in ("single-scale", "multi-scale")
                for backend, iterations in ((None, 0), ("torch", 1), ("torch", 10),
                                            ("pydensecrf", 1), ("pydensecrf", 10))]
    rows = numbers["rows"]
    assert [(row["view"], row["crf"] and row["crf"]["backend"],
             row["crf"]["iterations"] if row["crf"] else 0) for row in rows] == expected
    for row in rows:
        assert list(row["milliseconds"]) == list(runs.STAGES)
        for stage, times in row["milliseconds"].items():
            if stage == "crf" and row["crf"] is None:
                assert times is None
            else:
                assert times["median"] > 0 and times["iqr"] >= 0
        base = rows[0] if row["view"] == "single-scale" else rows[5]
        for rates, other in ((row, base), (row["overlapped"], base["overlapped"])):
            ratio = other["images_per_second"] / rates["images_per_second"]
            assert rates["slowdown"] == pytest.approx(ratio)
        assert row["overlapped"]["peak_bytes"] >= row["overlapped"]["loaded_bytes"] > 2**24
    assert rows[0]["milliseconds"]["network"] == rows[4]["milliseconds"]["network"]
    assert "| single-scale, CRF torch, 10 iterations |" in text and "| mIoU |" in text
    assert "multi-scale, CRF pydensecrf, 1 iteration" in out and "scales 1, 0.5 with flips" in text
    # The scores are those of infer.py.
    for row, options in ((rows[1], ["--scales", 1, "--no-flip", "--crf"]), (rows[5], [])):
        code = run_main(weights, drawn / "images", tmp_path / "masks", *options, "--overwrite",
                        "--evaluate", drawn / "masks", "--json", tmp_path / "infer.json")
        scores = json.loads((tmp_path / "infer.json").read_text())["run"]["scores"]
        assert code == 0 and row["scores"]["jf"] > 0
        assert row["scores"] == {key: scores[key] for key in ("miou", "boundary_f", "jf")}


@pytest.fixture
def config(tmp_path):
    """A file that describes a tiny network for the scenes."""
    path = tmp_path / "random.yaml"
    tree = load_config(None, ["data.name=scenes", *BENCHMARK_TINY])
    path.write_text(to_yaml(tree), encoding="utf-8")
    return path


def test_without_arguments_scenes_and_a_random_network(
    run, config, tmp_path, monkeypatch, no_pydensecrf
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inference, "CONFIG", str(config))
    numbers, text, out = run("inference", "--limit", 2)
    assert numbers["images"] == 2 and numbers["source"] is None and numbers["weights"] is None
    # Evaluated at one scale with flips: that is another view than one scale without.
    assert [row["scales"] for row in numbers["rows"]] == 6 * [[1.0]]
    assert [row["flip"] for row in numbers["rows"]] == 3 * [False] + 3 * [True]
    assert all(row["scores"] is None for row in numbers["rows"])
    assert "mIoU" not in text and "pydensecrf," not in text
    for told in (text, out):
        assert "network is random" in told and "Rows are left out" in told
        assert "pip install pydensecrf2" in told


def test_trained_weights_are_found_and_score_the_scenes(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / inference.TRAINED
    file.parent.mkdir(parents=True)
    for content, scored in ((weights, True), (write_weights(tmp_path / "w.pt"), False)):
        file.write_bytes(content.read_bytes())
        given = inference.parse(["--limit", "1", "--device", "cpu"])
        work = inference.prepare(given, tmp_path / content.stem)
        assert work.facts["weights"] == inference.TRAINED and len(work.jobs) == 1
        assert (work.masks is not None) == scored
        assert ("other classes than the scenes" in " ".join(work.facts["notes"])) != scored


# Random networks


def load_random(path, config, job, classes=None):
    random_network.write_random(path, str(config), classes, job)
    return cosa.load(path)


def test_a_random_network_shows_several_classes_surely(tmp_path, drawn, config):
    job = inference.plan(str(drawn / "images"), str(tmp_path / "out"))[0]
    network = load_random(tmp_path / "a.pt", config, job)
    state = torch.get_rng_state()
    random_network.write_random(tmp_path / "b.pt", str(config), None, job)
    assert torch.equal(torch.get_rng_state(), state)
    again = cosa.load(tmp_path / "b.pt").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in network.state_dict().items())
    assert network.classes == inference.SCENE_CLASSES
    image = random_network.network_input(runs.read_image(job.source), 48)[None]
    seg = network(image).seg[0]
    assert seg.std().item() == pytest.approx(random_network.SPREAD, rel=1e-3)
    assert len(seg.argmax(dim=0).unique()) >= 3
    assert seg.mean(dim=(1, 2)).abs().max() < 1e-3  # no class is ahead everywhere
    assert load_random(tmp_path / "c.pt", config, job, classes=21).num_classes == 20
    config.write_text("data: {name: folder}\n")
    with pytest.raises(UserError, match="--classes K"):
        load_random(tmp_path / "d.pt", config, job)


# Stages


class FakeTime:
    """A clock that only the stages advance, each by an amount of its own."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(runs, "clock", lambda device: self.now)
        self.wrap(monkeypatch, runs, "decode", 1)
        self.wrap(monkeypatch, runs.Segmenter, "predict", 10)
        self.wrap(monkeypatch, runs.Segmenter, "refine", 100)
        self.wrap(monkeypatch, runs, "label", 1000)
        self.wrap(monkeypatch, runs.outputs, "write", 10000)

    def wrap(self, monkeypatch, owner, name, seconds):
        original = getattr(owner, name)

        def function(*arguments):
            self.now += seconds
            self.calls.append(name)
            return original(*arguments)

        monkeypatch.setattr(owner, name, function)


def test_stages_are_timed_apart_per_image_and_after_a_warm_up(
    monkeypatch, weights, drawn, tmp_path
):
    time = FakeTime(monkeypatch)
    network = cosa.load(weights)
    rows = inference.choose_rows(network, SIZE, ["torch"])
    jobs = inference.plan(str(drawn / "images"), str(tmp_path / "out"))
    found = runs.time_stages(network, jobs, rows, 2, torch.no_grad)
    for row, seconds in zip(rows, found, strict=True):
        assert seconds["decode"] == [1, 1, 1]
        assert seconds["network"] == [5, 5, 10]  # batches of two and one
        assert seconds["crf"] == ([100, 100, 100] if row.settings.crf else [])
        assert seconds["argmax"] == [1000] * 3 and seconds["write"] == [10000] * 3
    # Two views; three batches, of which the first serves to warm up: 5 images in each of 6 rows.
    assert time.calls.count("predict") == 2 * 3
    assert time.calls.count("decode") == time.calls.count("write") == 6 * 5
    # The files are those of the last row, the same as the pipeline's.
    other = inference.plan(str(drawn / "images"), str(tmp_path / "other"))
    setup = runs.Setup(str(weights), "cpu", 2, 1, 1)
    for settings, same in ((rows[-1].settings, True), (rows[-3].settings, False)):
        runs.run_pipeline(setup, other, settings)
        assert same == all(
            np.array_equal(read(a.results["mask"]), read(b.results["mask"]))
            for a, b in zip(jobs, other, strict=True)
        )
    result = runs.report_row(rows[1], found[1], {"images_per_second": 2.0}, None)
    assert result["milliseconds"]["network"] == {"median": 5000, "iqr": 2500}
    assert result["images_per_second"] == pytest.approx(3 / (3 + 20 + 300 + 3000 + 30000))


def test_slowdown_is_against_no_crf_of_the_same_view(weights):
    rows = inference.choose_rows(cosa.load(weights), SIZE, ["torch"])
    assert [row.settings.passes for row in rows] == [1, 1, 1, 4, 4, 4]
    for preset, row in zip(("release", "toco"), rows[1:3], strict=True):
        assert {key: getattr(row.settings.crf, key) for key in PRESETS[preset]} == PRESETS[preset]
    results = []
    for row, rate, other in zip(rows, (8.0, 4.0, 2.0, 3.0, 2.0, 1.5), (9, 6, 3, 4, 4, 2),
                                strict=True):
        part = 1 / rate / 4
        seconds = {stage: [part] for stage in ("decode", "network", "argmax", "write")}
        seconds["crf"] = []
        pipeline = {"images_per_second": other, "peak_bytes": 2**20, "loaded_bytes": 2**19}
        results.append(runs.report_row(row, seconds, pipeline, None))
    runs.compare(results)
    assert [row["slowdown"] for row in results] == pytest.approx([1, 2, 4, 1, 1.5, 2])
    assert [row["overlapped"]["slowdown"] for row in results] == pytest.approx([1, 1.5, 3, 1, 1, 2])
    head, *lines = inference_table.table(rows, results)
    assert len({len(line) for line in (head, *lines)}) == 1 and "mIoU" not in head
    assert lines[2] == [
        "single-scale, CRF torch, 10 iterations", *2 * ["125.0 (0.0)"], report.NOTHING,
        *2 * ["125.0 (0.0)"], "2.00", "4.00", "3.00", "3.00", "1",
    ]


def test_weights_that_see_one_scale_have_one_view(tmp_path):
    network = cosa.load(write_weights(tmp_path / "w.pt"))
    evaluation = replace(network.config.evaluate, scales=(1.0,), flip=False)
    network.config = replace(network.config, evaluate=evaluation)
    assert {row.view for row in inference.choose_rows(network, SIZE, [])} == {"single-scale"}


@pytest.mark.slow  # PyTorch starts once more
def test_a_row_is_measured_in_a_process_of_its_own(weights, drawn, tmp_path):
    jobs = inference.plan(str(drawn / "images"), str(tmp_path / "out"))
    settings = runs.Settings(size=SIZE)
    setup = runs.Setup(str(weights), "cpu", 2, 1, 1)
    found = memory.in_fresh_process(runs.run_pipeline, setup, jobs, settings)
    assert found["images_per_second"] > 0 and found["peak_bytes"] >= found["loaded_bytes"] > 2**24
    assert all(job.finished for job in jobs)


def test_a_fresh_process_answers_refuses_or_is_ended(weights, tmp_path):
    assert memory.in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(UserError, match="cannot write"):
        memory.in_fresh_process(write_atomically, "/dev/null/file", "")
    with pytest.raises(UserError, match="was ended.*lower --batch-size"):
        memory.in_fresh_process(os._exit, 1)
    save(tmp_path / "a.png")
    row = inference.choose_rows(cosa.load(weights), SIZE, ["torch"])[-1]
    task = (runs.run_pipeline, runs.Setup(str(weights), "cpu", 2, 1, 1),
            inference.plan(str(tmp_path), str(tmp_path / "out")), row.settings)
    assert pickle.loads(pickle.dumps(task)) == task


def test_a_failing_image_stops_the_measuring(weights, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    jobs = inference.plan(str(tmp_path), str(tmp_path / "out"))
    setup = runs.Setup(str(weights), "cpu", 2, 1, 1)
    with pytest.raises(UserError, match="a.png"):
        runs.run_pipeline(setup, jobs, runs.Settings(size=SIZE))


# Refusals


def test_what_cannot_be_measured_is_one_sentence(refusal, weights, drawn, tmp_path):
    images, masks = drawn / "images", drawn / "masks"
    assert "does not exist" in refusal(tmp_path / "nowhere", "--weights", weights)
    (tmp_path / "empty").mkdir()
    assert "no image in" in refusal(tmp_path / "empty", "--weights", weights)
    assert "no.pt cannot be read (No such file" in refusal(images, "--weights", tmp_path / "no.pt")
    message = refusal(images, "--weights", weights, "--masks", tmp_path / "nowhere")
    assert "--masks" in message and "is no folder" in message
    message = refusal(images, "--weights", weights, "--masks", tmp_path / "empty")
    assert "no mask belongs to an image" in message
    small = tmp_path / "small"
    small.mkdir()
    Image.new("L", (7, 5)).save(small / "test_00001.png")
    message = refusal(images, "--weights", weights, "--masks", small)
    assert "7x5" in message and "40x40" in message
    few = write_weights(tmp_path / "few.pt", classes=("cat",))
    assert "the mask holds the value" in refusal(images, "--weights", few, "--masks", masks)


def test_options_that_do_not_go_together(capsys):
    for options, told in ((["--masks", "m"], "folder of images"),
                          (["--weights", "w", "--classes", "21"], "leave out --weights"),
                          (["--classes", "1"], "must lie in 2..256"),
                          (["--limit", "0"], "must lie in 1..1000000")):
        with pytest.raises(SystemExit):
            inference.parse(options)
        assert told in capsys.readouterr().err


def test_what_the_truth_ignores_has_no_score(tmp_path):
    for folder, value in (("masks", 255), ("out", 1)):
        (tmp_path / folder).mkdir()
        Image.new("L", (4, 3), value).save(tmp_path / folder / "a.png")
    jobs = inference.Plan(tmp_path, tmp_path / "out", ("mask",), ["a.jpg"])
    scores = runs.score(jobs, tmp_path / "masks", 2)
    assert scores["miou"] is None and scores["jf"] is None


def test_only_images_with_a_mask_are_measured(weights, drawn, tmp_path):
    jobs = inference.plan(str(drawn / "images"), str(tmp_path / "out"))
    some = tmp_path / "some"
    some.mkdir()
    for k in (0, 2):
        name = f"test_{k:05d}.png"
        (some / name).write_bytes((drawn / "masks" / name).read_bytes())
    assert inference.with_masks(jobs, some, 7, 9).files == ["test_00000.png", "test_00002.png"]
    assert inference.with_masks(jobs, some, 7, 1).files == ["test_00000.png"]
    save(tmp_path / "wide" / "a.jpg", (9, 5))
    Image.new("L", (9, 5)).save(some / "a.png")
    jobs = inference.plan(str(tmp_path / "wide"), str(tmp_path / "out"))
    assert inference.with_masks(jobs, some, 7, 9).files == ["a.jpg"]


# The CRF alone


def two_colours(height=32, width=48):
    photo = np.zeros((height, width, 3), np.uint8)
    photo[:, width // 2 :] = (250, 200, 40)
    return photo


def test_class_maps_are_probabilities_that_follow_the_colours():
    photo = two_colours()
    maps = crf.class_maps(photo, 21, seed=3)
    assert maps.shape == (21, 32, 48) and maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(dim=0), torch.ones(32, 48))
    assert torch.equal(maps, crf.class_maps(photo, 21, seed=3))
    assert not torch.equal(maps, crf.class_maps(photo, 21, seed=2))
    labels = maps.argmax(dim=0)
    assert (labels < crf.PRESENT).all()  # the others are absent
    left, right = labels[:, :20].unique(), labels[:, 28:].unique()
    assert not set(left.tolist()) & set(right.tolist())
    assert crf.class_maps(photo[:5, :3], 2, seed=0).shape == (2, 5, 3)


def test_every_class_takes_part_where_it_should(some_pydensecrf):
    photo, iterations = two_colours(16, 16), 2
    first = 0.2 + 0.6 * torch.rand(16, 16, generator=torch.manual_seed(0))
    faint = torch.full((16, 16), 0.9 * crf.NOTICEABLE)
    maps = torch.stack([first, 1 - first - faint, faint])
    runs = crf.variants(iterations, torch.device("cpu"), pydensecrf=True)
    found = {name: run(photo, maps).log() for name, run in runs.items()}
    every, dropped, other = (found[name] for name in (crf.EVERY_CLASS, crf.TORCH, crf.PYDENSECRF))
    assert (every - other).abs().max() < 0.001
    assert (dropped - other).abs().max() > 0.005
    options = {**PRESETS["release"], "iterations": iterations}
    assert torch.equal(dense_crf(photo, maps, **options).log(), dropped)  # nothing is left behind


def test_the_bound_of_the_noticeable_is_that_of_the_crf():
    preset = PRESETS["release"]
    weight = preset["gaussian"][0] + preset["bilateral"][0]
    assert crf.NOTICEABLE * weight == pytest.approx(crf.crf.NEGLIGIBLE)


def test_the_crf_alone(run, tmp_path, some_pydensecrf):
    save_smooth(tmp_path / "in/a.png", (60, 40), seed=0)
    save_smooth(tmp_path / "in/b.png", (40, 60), seed=1)
    numbers, text, out = run("crf", tmp_path / "in", "--classes", 3, 9, "--iterations", 1, 2,
                             "--size", "45x30", "--repeats", 2, "--memory", "64x48")
    assert numbers["images"] == 2 and numbers["size"] == [45, 30] and numbers["threads"] == 1
    results = numbers["results"]
    assert [(r["classes"], r["iterations"]) for r in results] == [(3, 1), (3, 2), (9, 1), (9, 2)]
    for result in results:
        median = {name: times["median"] for name, times in result["milliseconds"].items()}
        assert result["ratio"] == pytest.approx(median[crf.PYDENSECRF] / median[crf.TORCH])
        assert result["gain"] == pytest.approx(median[crf.EVERY_CLASS] / median[crf.TORCH])
        assert result["agreement"] > 0.99 and result["same_with_every_class"] > 0.99
        assert 0 < result["changed"] < 0.5
        assert 2 <= result["noticeable"] <= result["classes"]
    assert "| 9, 2 |" in text and "2 photographs" in text and "agreement" in out
    needs = numbers["memory"]
    assert [(n["size"], n["classes"]) for n in needs] == [([64, 48], 3), ([64, 48], 9)]
    for need in needs:
        assert set(need["bytes"]) == {"torch", "pydensecrf"}
        assert all(amount >= 0 for amount in need["bytes"].values())
        assert need["expected"] == crf_memory.working_memory(64 * 48, need["classes"])
    assert "| 64x48, 9 |" in text and "at its peak" in text


def test_the_crf_alone_on_a_scene_without_pydensecrf(run, no_pydensecrf):
    numbers, text, out = run("crf", "--classes", 3, "--iterations", 1, "--size", "40x24",
                             "--repeats", 1, "--memory")
    (result,) = numbers["results"]
    assert result["ratio"] is None and result["agreement"] is None and result["gain"] > 0
    assert "no photograph" in text and "40x24" in text and numbers["memory"] == []
    for told in (text, out):
        assert "pip install pydensecrf2" in told


@pytest.mark.slow  # PyTorch starts once more
def test_the_memory_of_a_crf_is_about_what_is_expected():
    found = memory.in_fresh_process(crf_memory.crf_peak, None, (200, 300), 21, "torch", "cpu")
    expected = crf_memory.working_memory(200 * 300, 21)
    assert 0.5 * expected < found < 1.3 * expected


def test_photographs_are_counted_resized_and_turned(tmp_path):
    save(tmp_path / "a.png", (60, 40))
    save(tmp_path / "b.png", (40, 60))
    photos, about = crf_inputs.read_photos(str(tmp_path), (30, 45), 9)
    assert [photo.shape for photo in photos] == [(30, 45, 3), (45, 30, 3)] and "2 photo" in about
    assert len(crf_inputs.read_photos(str(tmp_path), (30, 45), 1)[0]) == 1
    with pytest.raises(UserError, match="does not exist"):
        crf_inputs.read_photos(str(tmp_path / "nowhere"), (30, 45), 1)


def test_labels_are_counted_against_the_torch_backend(monkeypatch):
    photo = two_colours(8, 8)
    maps = torch.zeros(2, 8, 8)
    maps[0] = 1
    monkeypatch.setattr(crf, "class_maps", lambda *_, seed: maps)
    other = maps.clone()
    other[:, 0, :4] = torch.tensor([0.0, 1.0])[:, None]  # 4 of 64 pixels
    fakes = {crf.TORCH: maps, crf.EVERY_CLASS: maps, crf.PYDENSECRF: other}
    # Two readings for each run: those of the first turn on the first photo do not count.
    ticks = iter(np.cumsum(3 * [5.0, 5.0] + 3 * [1.0, 1.0] + 3 * [3.0, 3.0] + [0.0]))
    monkeypatch.setattr(crf, "clock", lambda device: next(ticks))
    monkeypatch.setattr(crf, "variants", lambda *_: {
        name: lambda photo, maps, result=result: result for name, result in fakes.items()})
    found = crf.measure([photo, photo], 2, 1, repeats=1, device=torch.device("cpu"))
    assert found["agreement"] == 60 / 64 and found["same_with_every_class"] == 1
    assert found["changed"] == 0 and found["noticeable"] == 1
    assert found["milliseconds"][crf.TORCH] == {"median": 2000, "iqr": 1000}
    assert len(list(ticks)) == 1


def test_sizes_and_times_as_text():
    assert crf.size("500x375") == (375, 500)
    for text in ("500", "0x5", "5x-1", "axb"):
        with pytest.raises(Exception, match="no size such as"):
            crf.size(text)
    assert crf.spread([0.001, 0.002, 0.004]) == pytest.approx({"median": 2, "iqr": 1.5})
    assert crf.cell({"median": 1234.5, "iqr": 10}) == "1234 (10)"
    assert crf.cell({"median": 12.34, "iqr": 1}) == "12.3 (1.0)"
    assert crf.cell({"median": 1.234, "iqr": 0.1}) == "1.23 (0.10)"
