"""infer.py --export: files for annotation tools, complete whatever stops it; --save index."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image

import infer
from cosa.data.labels import read_labels
from cosa.data.masks import open_masks
from cosa.export.annotations import FORMATS
from cosa.export.annotations.yolo import Yolo
from cosa.inference import outputs
from tests.helpers.inference import CLASSES, files, read, refusal

EXPORT = ("--export", ",".join(FORMATS), "--simplify", "0")
NAMES = ["0.png", "a/1.png", "a/2.jpg"]
WHOLE = ["coco.json", "labelstudio.json", "labelstudio.xml", "yolo/data.yaml"]


def stem(name):
    return name.rpartition(".")[0]


def written(out):
    """What is there for annotation tools: name -> content, but for where the images are."""
    names = [*WHOLE, *(f"yolo/{kind}/{stem(name)}.txt" for name in NAMES
                       for kind in ("labels", "scores")),
             *(f"labelme/{stem(name)}.json" for name in NAMES)]
    return {name: (out / name).read_bytes() for name in names}


def test_all_formats_at_once(tmp_path, photos, program):
    out = tmp_path / "out"
    code, text, err = program(photos, out, *EXPORT, "--json", tmp_path / "s.json")
    assert (code, err) == (0, "")
    assert text.splitlines()[1] == (
        "for annotation tools: coco.json, yolo, labelme, labelstudio.json, labelstudio.xml")
    found = written(out)
    own = [stem(name) + suffix for name in NAMES for suffix in (".png", ".regions.npz")]
    assert files(out) == sorted([*found, *own, "classes.csv"])

    reader = open_masks(out / "coco.json", {name: name for name in NAMES}, CLASSES)
    counts = {}
    summary = json.loads((tmp_path / "s.json").read_text())
    for name, entry in zip(NAMES, summary["images"], strict=True):
        mask = read(out / f"{stem(name)}.png")
        np.testing.assert_array_equal(reader.read(name, mask.shape[::-1]), mask)
        counts[name] = {CLASSES[k - 1] for k in np.unique(mask) if k}
        assert mask.shape == tuple(entry["size"][::-1])
        # The scores of a class's regions are its probability in the summary, region by region.
        content = json.loads(found["coco.json"])
        number = {image["file_name"]: image["id"] for image in content["images"]}[name]
        for known in entry["classes"][1:] if entry["classes"][0]["index"] == 0 else (
                entry["classes"]):
            of_class = [item for item in content["annotations"] if item["image_id"] == number
                        and item["category_id"] == known["index"]]
            areas = np.array([item["area"] for item in of_class])
            assert areas.sum() == round(known["share"] * mask.size)
            mean = np.average([item["score"] for item in of_class], weights=areas)
            assert mean == pytest.approx(known["probability"], abs=1e-3)
    assert set().union(*counts.values()) > {CLASSES[0]}
    for path in (out / "coco.json", out / "yolo"):
        table = read_labels(path)
        assert table.names == CLASSES
        assert {stem(row.image) if row.image in NAMES else row.image: set(row.labels)
                for row in table.rows} == {stem(name): names for name, names in counts.items()}
    tasks = json.loads(found["labelstudio.json"])
    assert [task["data"]["image"] for task in tasks] == [
        f"/data/local-files/?d={name}" for name in NAMES]

    # Again nothing is computed, and the same is written.
    code, text, err = program(photos, out, *EXPORT)
    assert (code, err) == (0, "") and "3 skipped" in text and written(out) == found
    # Other polygons, and fewer of them, need no network either.
    code, text, err = program(photos, out, "--export", "coco", "--min-area", "40")
    assert code == 0 and "3 skipped" in text
    fewer = json.loads((out / "coco.json").read_text())["annotations"]
    assert {item["area"] for item in fewer} == {
        item["area"] for item in content["annotations"] if item["area"] >= 40}
    assert 0 < len(fewer) < len(content["annotations"])
    code, text, err = program(photos, out, "--export", "labelme", "--min-area", "40")
    assert code == 0 and "--export labelme" in err and "stay as they are" in err


def test_whatever_stops_it_the_files_are_complete_in_the_end(
    tmp_path, photos, program, monkeypatch
):
    assert program(photos, tmp_path / "whole", *EXPORT)[0] == 0
    expected, out = written(tmp_path / "whole"), tmp_path / "out"
    real = outputs.write

    def stopped(job, *arguments):
        if job.name == NAMES[1]:
            raise KeyboardInterrupt
        real(job, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "write", stopped)
        assert program(photos, out, *EXPORT, "--workers", "1")[0] == 130
    assert (out / "0.regions.npz").exists() and not (out / "coco.json").exists()

    # And again, among the files of the second image.
    def interrupted(self, name, text):
        if name == "yolo/labels/a/1.txt":
            os.kill(os.getpid(), signal.SIGINT)
        put(self, name, text)

    put = Yolo.put
    with monkeypatch.context() as patch:
        patch.setattr(Yolo, "put", interrupted)
        code, _, err = program(photos, out, *EXPORT)
    assert code == 130 and "the same command goes on where it left off" in err
    assert (out / "yolo/labels/0.txt").exists() and not (out / "yolo/labels/a/2.txt").exists()
    assert not (out / "coco.json").exists() and not [*out.rglob("*.tmp")]
    code, text, err = program(photos, out, *EXPORT)
    assert (code, err) == (0, "") and "3 skipped" in text
    assert written(out) == expected

    # With other threads, and batches of another size.
    options = ("--workers", "3", "--batch-size", "3")
    assert program(photos, tmp_path / "other", *EXPORT, *options)[0] == 0
    assert written(tmp_path / "other") == expected


def test_an_image_that_fails_is_left_out(tmp_path, photos, program):
    out = tmp_path / "out"
    (photos / "b.png").write_bytes(b"no image")
    code, text, err = program(photos, out, *EXPORT)
    assert code == 1 and "1 failed" in text and err.startswith(f"failed: {photos / 'b.png'}")
    (out / "0.regions.npz").write_bytes((out / "0.png").read_bytes())
    code, text, err = program(photos, out, *EXPORT)
    assert code == 1 and "2 failed" in text and err.count("\n") == 2
    assert f"failed: {out / '0.regions.npz'} cannot be read" in err
    assert "delete it, or use --overwrite" in err
    content = json.loads((out / "coco.json").read_text())
    assert [image["file_name"] for image in content["images"]] == NAMES[1:]


def test_what_would_be_lost_is_refused(tmp_path, photos, weights, program):
    out = tmp_path / "out"
    assert program(photos, out, *EXPORT)[0] == 0
    assert "--labels" in refusal(weights, photos, out, *EXPORT, "--labels", out / "coco.json")
    assert "--evaluate" in refusal(weights, photos, out, *EXPORT, "--evaluate", out / "coco.json")
    for name in ("coco.json", "labelme/0.json"):
        assert "--json" in refusal(weights, photos, out, *EXPORT, "--json", out / name)
    (out / "coco.json").write_text('{"images": []}')
    assert "was not written by this program" in refusal(weights, photos, out, *EXPORT)
    assert program(photos, out, "--export", "yolo")[0] == 0


@pytest.mark.parametrize("words, told", [
    ("--export cooc", "'cooc' is no format of --export"),
    ("--export ,", "choose from coco,yolo,labelme,labelstudio"),
    ("--export coco --min-area 0", "--min-area is 0: it must lie in 1..1000000000"),
    ("--export coco --simplify -1", "--simplify is -1.0: it must lie in 0..1000"),
    ("--min-area 5", "--min-area is of use with --export only"),
    ("--simplify 1", "--simplify is of use with --export only"),
    ("--export coco --image-prefix x", "is of use with --export labelstudio only"),
])
def test_options(capfd, words, told):
    with pytest.raises(SystemExit) as left:
        infer.parse(["in", "--weights", "w", "--output", "o", *words.split()])
    assert left.value.code == 2 and told in capfd.readouterr().err


def test_index_masks_are_grey(tmp_path, photos, program):
    assert program(photos, tmp_path / "out", "--save", "mask,index")[0] == 0
    for name in NAMES:
        with Image.open(tmp_path / f"out/{stem(name)}.index.png") as image:
            assert image.mode == "L"
            np.testing.assert_array_equal(
                np.array(image), read(tmp_path / f"out/{stem(name)}.png"))
