"""Data that would make a training or a score meaningless stop the programs before they begin."""

import json

import numpy as np
import pytest

from tests.helpers.folder_data import blob, write_folder
from tests.helpers.inference import CLASSES, save_smooth
from tests.helpers.training import configure

IMAGES = {f"{k:02d}": (("cat", "dog", "sofa")[k % 3], blob(1 + k % 3)) for k in range(9)}


def test_a_training_keeps_what_was_found_in_its_data(train_program, tmp_path):
    images = IMAGES | {"01": ("", blob(0))}
    data = write_folder(tmp_path / "own", images, ("cat", "dog", "sofa", "ship"))
    config = configure(tmp_path, data=data, train={"iterations": 1})
    code, out, err = train_program(config)
    assert code == 0, err
    assert out.startswith("class ") and "validation masks" in out.splitlines()[0]
    lines = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 2, "one line for each kind"
    assert lines[0].startswith("warning: no training image has the label 'ship'")
    assert lines[1].startswith("warning: 1 of 9 training images have no label")
    kept = json.loads((tmp_path / "runs/tiny/data.json").read_text())
    assert kept["training"]["labels"] == {"images": 9, "of_class": [3, 2, 3, 0], "unlabelled": 1}
    assert kept["validation"]["masks"]["masks"] == [9, 3, 2, 3, 0]
    assert [f"warning: {finding['sentence']}" for finding in kept["findings"]] == lines


@pytest.mark.parametrize("value, words", [
    (255, "9 of 9 validation masks hold no value but 0 and 255, such as "),
    (0, "9 of 9 validation masks hold the background alone though the labels name classes"),
])
def test_a_training_with_bad_masks_does_not_begin(train_program, tmp_path, value, words):
    images = {name: (labels, blob(value)) for name, (labels, _) in IMAGES.items()}
    config = configure(tmp_path, data=write_folder(tmp_path / "own", images))
    code, _, err = train_program(config)
    last = err.splitlines()[-1]
    assert code == 2 and last.startswith(f"error: {words}") and "Traceback" not in err
    assert "own/masks/00.png" in last and "write the class index, 1..3" in last
    assert not (tmp_path / "runs").exists()


def truth_of(folder, masks):
    for name in masks:
        save_smooth(folder / f"in/{name}.png", (40, 40))
    return write_folder(folder / "truth", {name: ("", mask) for name, mask in masks.items()})


@pytest.mark.parametrize("labels", [False, True])
def test_an_evaluation_with_bad_masks_does_not_begin(command_line, weights, tmp_path, labels):
    truth_of(tmp_path, dict.fromkeys("abc", blob(255)))
    more = []
    if labels:
        (tmp_path / "labels.csv").write_text("image,labels\na,cat\nb,ship\nc,cat\n")
        more = ["--labels", tmp_path / "labels.csv"]
    code, out, err = command_line(
        "infer.py", tmp_path / "in", "--weights", weights, "--output", tmp_path / "out",
        "--evaluate", tmp_path / "truth/masks", "--device", "cpu", *more,
    )
    told = f"note: {tmp_path}/labels.csv: 3 images, 2 classes, CSV, one label per image\n"
    assert (code, out) == (2, "") and err == (told if labels else "") + (
        f"error: 3 of 3 true masks hold no value but 0 and 255, such as {tmp_path}/truth/masks/"
        "a.png: write the class index, 1..3, where the object is; 255 means 'does not count' (in "
        "COCO's files: give each annotation its outline); or name white in a colour map "
        "(data.colors, --colors)\n"
    )
    assert not (tmp_path / "out").exists()


def test_an_evaluation_by_labels_in_another_order_does_not_begin(
    command_line, weights, tmp_path
):
    truth_of(tmp_path, {name: blob(1 + k) for k, name in enumerate("abc")})
    rows = [f'{name},"{CLASSES[(k + 1) % 3]}"' for k, name in enumerate("abc")]
    (tmp_path / "labels.csv").write_text("image,labels\n" + "\n".join(rows) + "\n")
    code, _, err = command_line(
        "infer.py", tmp_path / "in", "--weights", weights, "--output", tmp_path / "out",
        "--evaluate", tmp_path / "truth/masks", "--device", "cpu",
        "--labels", tmp_path / "labels.csv",
    )
    assert code == 2 and "names or order of the classes are wrong" in err
    assert "a.png (labels: 'dog, big'; mask: 'cat')" in err and err.count("\n") == 2


def test_a_truth_without_classes_is_scored_with_a_warning(program, tmp_path):
    truth_of(tmp_path, dict.fromkeys("ab", np.zeros((40, 40), np.uint8)))
    code, out, err = program(tmp_path / "in", tmp_path / "out", "--evaluate",
                             tmp_path / "truth/masks")
    assert code == 0 and "2 images scored" in out
    assert err.startswith("warning: none of 2 true masks holds a class") and err.count("\n") == 1


def test_a_file_of_objects_without_outlines_is_no_truth(command_line, weights, tmp_path):
    """It names its classes itself: the score would be that of the background alone."""
    truth_of(tmp_path, dict.fromkeys("ab", blob(1)))
    tree = {"categories": [{"id": 4, "name": CLASSES[0]}],
            "images": [{"id": k, "file_name": f"{name}.png"} for k, name in enumerate("ab")],
            "annotations": [{"image_id": 0, "category_id": 4, "segmentation": []},
                            {"image_id": 1, "category_id": 4, "segmentation": [[1, 1, 9, 9]]}]}
    (tmp_path / "truth.json").write_text(json.dumps(tree))
    code, out, err = command_line(
        "infer.py", tmp_path / "in", "--weights", weights, "--output", tmp_path / "out",
        "--evaluate", tmp_path / "truth.json", "--device", "cpu",
    )
    assert (code, out) == (2, "") and "give each annotation its outline" in err
    assert err.startswith("error: 2 of 2 true masks hold the background alone though the labels")
