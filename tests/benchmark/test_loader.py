import json
import time

import numpy as np
import pytest
import torch

from cosa.benchmark.__main__ import main
from cosa.benchmark.timings import loader
from cosa.data import transforms
from cosa.data.batches import to_device
from cosa.data.loader import TrainingViews

AUGMENT = dict(crop_size=32, scale_min=0.5, scale_max=2.0, flip=0.5, blur=0.0, blur_min=0.1,
               blur_max=2.0, strong=True)
TINY = ["augment.crop_size=32", "train.batch_size=2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return loader.textures(tmp_path_factory.mktemp("textures"), 4, 64, 48)


def samples(files, options):
    """The same samples of both streams, as the networks read them."""
    plain = loader.Straightforward(files, 3, **AUGMENT | options)
    stream = TrainingViews(files, 3, **AUGMENT | options)
    for position in range(12):
        sample = stream[position]
        batch = {key: torch.as_tensor(value)[None] for key, value in sample.items()}
        found = to_device(batch, "cpu", torch.zeros(3, 1, 1))
        yield plain[position], {key: value[0] for key, value in found.items()}


@pytest.mark.parametrize("strong", [False, True])
def test_the_streams_agree_but_for_the_blur(files, strong):
    for expected, found in samples(files, {"strong": strong}):
        assert set(expected) == set(found)
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key], torch.as_tensor(value), rtol=0, atol=1e-6, msg=key
            )


def test_the_blur_differs_by_less_than_a_grey_level(files):
    apart = []
    for expected, found in samples(files, {"blur": 1.0, "strong": False}):
        apart.append(loader.grey_levels(
            found["weak"][None], expected["weak"][None], found["valid"][None]
        ))
    assert 0 < np.mean(apart) < 1


def test_grey_levels_are_means_over_what_is_valid():
    first, second = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    second[0, 0, 0, 0], second[0, 1, 1, 1] = 3 / 255, 99.0
    valid = torch.tensor([[[True, True], [True, False]]])
    assert loader.grey_levels(first, second, valid) == pytest.approx(1 / 3)


def test_textures_are_files_with_labels(files):
    assert len(files) == 4 and files.labels.all()
    assert files.open_image(0).size == (64, 48)
    assert np.asarray(files.image(0)).std() > 20
    assert not np.array_equal(files.image(0), files.image(1))


def test_a_stage_within_another_counts_once(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 10.0])
    clock = loader.Clock()
    inner = clock.wrapped("inner", lambda: None)
    monkeypatch.setattr(time, "process_time", lambda: next(now))
    clock.wrapped("outer", inner)()
    assert clock.seconds == {"inner": 2.0, "outer": 8.0}


def test_the_clock_leaves_the_program_as_it_was():
    before = transforms.blurred
    with pytest.raises(ZeroDivisionError), loader.Clock().running():
        assert transforms.blurred is not before
        raise ZeroDivisionError
    assert transforms.blurred is before


def test_the_benchmark_end_to_end(tmp_path, capsys):
    report, output = tmp_path / "report.md", tmp_path / "numbers.json"
    assert main(["loader", *TINY, "--images", "4", "--rounds", "1", "--size", "64x48",
                 "--workers", "1", "--report", str(report), "--output", str(output)]) == 0
    facts = json.loads(output.read_text())
    assert "4 JPEG files" in facts["images"] and "64x48 pixels" in facts["images"]
    for name in (loader.BEFORE, loader.NOW):
        stages = facts["milliseconds"][name]
        assert set(stages) == {*loader.STAGES, loader.OTHER}
        assert all(value >= 0 for value in stages.values())
        assert sum(stages.values()) == pytest.approx(1e3 / facts["per_core"][name])
        assert stages["decode"] > 0 and facts["with_workers"][name]["rate"] > 0
    assert facts["megabytes"][loader.BEFORE] > 3 * facts["megabytes"][loader.NOW]
    text = report.read_text()
    assert text.startswith("# Benchmarks") and "<!-- loader:end -->" in text
    assert "images/s per core" in text and "images/s per core" in capsys.readouterr().out


def test_the_benchmark_of_a_data_set(tmp_path, capsys):
    report, output = tmp_path / "report.md", tmp_path / "numbers.json"
    assert main(["loader", "--config", "configs/demo.yaml", *TINY, "data.scenes_train=3",
                 "--images", "2", "--rounds", "1", "--workers", "1",
                 "--report", str(report), "--output", str(output)]) == 0
    assert "3 images of `scenes`" in capsys.readouterr().out
