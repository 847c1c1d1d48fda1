import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cosa.core import distributed
from cosa.core.errors import UserError
from cosa.data import loader as loader_module
from cosa.data.base import FileDataset, SegmentationDataset
from cosa.data.batches import to_device
from cosa.data.loader import (
    Positions,
    TrainingViews,
    fitting_workers,
    training_loader,
    worker_count,
)

AUGMENT = dict(crop_size=16, scale_min=0.5, scale_max=2.0, flip=0.5, blur=0.5, strong=True)


class Noise(SegmentationDataset):
    """Seven images of noise; number 3 has no label, and touching a mask is an error."""

    classes = ("a", "b")
    palette = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    has_masks = True

    def __init__(self, count=7):
        self.names = [str(i) for i in range(count)]
        self.labels = np.array([[i % 2, 1 - i % 2] for i in range(count)], dtype=np.uint8)
        self.labels[3:4] = 0

    def image(self, index):
        values = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        return Image.fromarray(values)

    def mask(self, index):
        raise AssertionError("training read a mask")


def batches(workers=0, start=0, iterations=5, seed=0, dataset=None, **options):
    return list(
        training_loader(
            dataset or Noise(),
            batch_size=4,
            seed=seed,
            iterations=iterations,
            start_iteration=start,
            workers=workers,
            **{**AUGMENT, **options},
        )
    )


def same(first, second):
    assert len(first) == len(second) > 0
    return all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


def test_batches_have_the_documented_content():
    (batch,) = batches(iterations=1)
    assert set(batch) == {"weak", "strong", "image_labels", "valid", "index", "present"}
    assert batch["weak"].shape == batch["strong"].shape == (4, 16, 16, 3)
    assert batch["weak"].dtype == batch["strong"].dtype == torch.uint8
    assert batch["valid"].shape == (4, 16, 16) and batch["valid"].dtype == torch.bool
    assert batch["image_labels"].dtype == torch.float32 and batch["index"].dtype == torch.int64
    expected = torch.from_numpy(Noise().labels)[batch["index"]].float()
    assert torch.equal(batch["image_labels"], expected)


def test_on_the_device_they_are_what_the_networks_read():
    (batch,) = batches(iterations=1, scale_min=0.4, scale_max=0.5)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    moved = to_device(batch, "cpu", mean)
    padding = ~batch["valid"][:, None].expand(-1, 3, -1, -1)
    assert padding.any() and not padding.all()
    for key in ("weak", "strong"):
        assert moved[key].dtype == torch.float32 and moved[key].shape == (4, 3, 16, 16)
        expected = batch[key].permute(0, 3, 1, 2) / 255
        assert torch.equal(moved[key][~padding], expected[~padding])
        normalised = (moved[key] - mean) / std
        assert not normalised[padding].any(), "exactly 0"
    for key in ("valid", "image_labels", "index", "present"):
        assert moved[key] is batch[key]


def test_batches_do_not_depend_on_the_number_of_workers():
    assert same(batches(workers=0), batches(workers=2))


def test_processes_load_their_shares_of_the_same_batches(monkeypatch):
    whole = batches(start=1)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts.append(batches(start=1))
    joined = [{key: torch.cat([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)]
    assert same(joined, whole) and all(len(batch["index"]) == 2 for part in parts for batch in part)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_continues_the_stream_exactly(workers):
    assert same(batches()[3:], batches(workers=workers, start=3))


def test_seeds_differ_in_order_and_in_views():
    first, other = batches(seed=0), batches(seed=1)
    assert any(not torch.equal(a["index"], b["index"]) for a, b in zip(first, other, strict=True))
    assert not same(first, other)


def test_every_epoch_is_a_fresh_permutation_of_the_labelled_images():
    stream = TrainingViews(Noise(), seed=0, **AUGMENT)
    epochs = [[stream.sample_index(6 * e + i) for i in range(6)] for e in range(8)]
    assert all(sorted(epoch) == [0, 1, 2, 4, 5, 6] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 4
    assert stream.sample_index(3) == epochs[0][3]


def test_an_image_looks_different_in_each_epoch():
    stream = TrainingViews(Noise(2), seed=0, **AUGMENT)
    items = [stream[position] for position in range(6)]
    zero = [item["weak"] for item in items if item["index"] == 0]
    assert len(zero) == 3 and not torch.equal(zero[0], zero[1])


def test_batches_may_be_larger_than_the_data_set():
    (batch,) = batches(iterations=1, dataset=Noise(2))
    assert sorted(batch["index"].tolist()) == [0, 0, 1, 1]


def test_length_counts_what_is_left():
    options = dict(batch_size=4, seed=0, workers=0, **AUGMENT)
    assert len(training_loader(Noise(), iterations=5, start_iteration=2, **options)) == 3
    assert list(training_loader(Noise(), iterations=5, start_iteration=5, **options)) == []


def test_loading_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    batches(iterations=2)
    assert torch.equal(state, torch.random.get_rng_state())


def test_no_labelled_image_is_a_user_error():
    dataset = Noise()
    dataset.labels[:] = 0
    with pytest.raises(UserError, match="no training image has a label"):
        TrainingViews(dataset, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_sentence_naming_the_file(tmp_path, workers):
    Noise().image(0).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    files = [tmp_path / "good.png", tmp_path / "bad.png"]
    dataset = FileDataset(("a",), ["good", "bad"], np.ones((2, 1)), files)
    with pytest.raises(UserError) as raised:
        batches(workers=workers, dataset=dataset)
    assert "bad.png" in str(raised.value) and "\n" not in str(raised.value)


class Interrupted(Noise):
    """Ctrl-C reaches every process of the terminal while the first image is read."""

    def image(self, index):
        os.kill(os.getpid(), signal.SIGINT)
        return super().image(index)


class Doomed(Noise):
    """Its worker is killed over image 2, as the system does for want of memory."""

    parent = os.getpid()

    def image(self, index):
        if index == 2 and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(index)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_a_dead_worker_is_one_sentence_with_the_remedy():
    before = signal.getsignal(signal.SIGCHLD)
    loader = training_loader(
        Doomed(), batch_size=4, seed=0, iterations=50, workers=1, **AUGMENT
    )
    with pytest.raises(UserError, match="data.workers=0 .* --shm-size") as raised:
        for _ in loader:
            # PyTorch's handler would raise here instead, where nobody knows of workers.
            assert signal.getsignal(signal.SIGCHLD) == before
    assert "\n" not in str(raised.value)


class Faulty(Noise):
    def image(self, index):
        raise RuntimeError("a defect")


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_a_defect_keeps_its_traceback_and_ends_the_program():
    script = (
        "from tests.data.test_loader import Faulty, batches\n"
        "if __name__ == '__main__': batches(workers=2, dataset=Faulty())"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2],
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 1 and done.stderr.strip().endswith("RuntimeError: a defect")


def test_workers_ignore_interrupts():
    assert same(batches(workers=1, dataset=Interrupted()), batches())


def test_positions_are_counted_and_not_kept():
    positions = Positions(range(3, 6), 4, slice(2, 4))
    assert list(positions) == [14, 15, 18, 19, 22, 23] and len(positions) == 6
    endless = training_loader(Noise(), batch_size=65536, seed=0, iterations=10**8, workers=0,
                              start_iteration=10**8 - 1, **AUGMENT)
    assert len(endless) == 1
    far = Positions(range(10**8), 65536, slice(0, 65536))
    assert len(far) == 65536 * 10**8 and next(iter(far)) == 0


@pytest.mark.parametrize("wanted, free, files, expected, told", [
    (4, None, 4096, 4, ""), (4, 10**9, 4096, 4, ""), (0, 0, 64, 0, ""),
    (4, 5000, 4096, 2, "2 of 4 processes load the images, as only /dev/shm has 0.0 MiB free"),
    (4, 0, 4096, 0, "the training itself loads the images, as only /dev/shm has"),
    (4, None, 80, 1, "1 of 4 processes load the images, as only 80 files may be open"),
    (4, 10**9, 20, 0, "the training itself loads the images, as only 20 files may be open"),
])
def test_workers_fit_into_what_there_is(monkeypatch, capsys, wanted, free, files, expected, told):
    monkeypatch.setattr(loader_module, "shared_memory", lambda: free)
    monkeypatch.setattr(loader_module, "allowed_files", lambda wanted: min(wanted, files))
    assert fitting_workers(wanted, 1000) == expected
    err = capsys.readouterr().err
    assert told in err and bool(err) == bool(told)


def test_a_small_shared_memory_changes_no_batch(monkeypatch):
    monkeypatch.setattr(loader_module, "shared_memory", lambda: 7 * 4 * 16**2)
    assert same(batches(workers=2), batches())


class Full(Noise):
    """A worker finds no room for its batch, as PyTorch tells it."""

    def image(self, index):
        raise RuntimeError("unable to write to file </torch_1_2>: No space left on device: "
                           "unable to allocate shared memory(shm) for file")


def test_no_room_for_a_batch_is_one_sentence():
    with pytest.raises(UserError, match="data.workers=0 .* --shm-size") as raised:
        batches(workers=1, dataset=Full())
    assert "\n" not in str(raised.value)


def test_worker_count(monkeypatch):
    for cores, expected in ((1, 0), (2, 1), (5, 4), (64, 8)):
        monkeypatch.setattr(loader_module, "core_count", lambda cores=cores: cores)
        assert worker_count(-1) == expected
    assert worker_count(0) == 0 and worker_count(3) == 3
