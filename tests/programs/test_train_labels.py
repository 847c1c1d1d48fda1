"""train.py on labels as people have them, of three formats."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.helpers.training import configure

LABELS = {f"{k:02d}": [("axe", "saw", "wood peg")[k % 3]] for k in range(9)} | {
    "09": ["axe", "wood peg"]}
CLASSES = ["axe", "saw", "wood peg"]


def save(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(path)


def class_folders(root):
    for number, (name, labels) in enumerate(LABELS.items()):
        save(root / f"images/{labels[0]}/{name}.png", number)
    return {}, "images: 10 images, 3 classes, a subfolder per class", [4, 3, 3]


def semicolons(root):
    lines = ["\ufeff;FileName;Tags"]
    for number, (name, labels) in enumerate(LABELS.items()):
        save(root / f"images/{name}.png", number)
        lines.append(f"{number};D:\\pictures\\{name}.png;{', '.join(labels)}")
    (root / "labels.csv").write_text("\r\n".join(lines), encoding="utf-8")
    told = "labels.csv: 10 images, 3 classes, CSV, labels between ','"
    return {"labels": "labels.csv"}, told, [4, 3, 4]


def coco(root):
    ids = {"saw": 70, "wood peg": 71, "axe": 3}
    content = {"images": [], "annotations": [],
               "categories": [{"id": number, "name": name} for name, number in ids.items()]}
    for number, (name, labels) in enumerate(LABELS.items()):
        save(root / f"images/{name}.png", number)
        content["images"].append({"id": 100 - number, "file_name": f"images/{name}.png"})
        content["annotations"] += [{"image_id": 100 - number, "category_id": ids[label]}
                                   for label in labels]
    (root / "instances.json").write_text(json.dumps(content))
    told = "instances.json: 10 images, 3 classes, COCO JSON"
    return {"labels": "instances.json"}, told, [4, 3, 4]


@pytest.mark.parametrize("write", [class_folders, semicolons, coco])
def test_a_training_on_labels_of_another_format(train_program, tmp_path, write):
    data, told, counts = write(tmp_path / "own")
    config = configure(
        tmp_path, train={"iterations": 2}, method={"cls_iterations": 1, "s2c_start": 1},
        data={"name": "folder", "root": str(tmp_path / "own"), "images": "images"} | data,
        evaluate={"panels": 0},
    )
    code, out, err = train_program(config)
    assert code == 0, err
    assert [line for line in err.splitlines() if " classes, " in line] == [
        f"note: {tmp_path}/own/{told}"]
    kept = json.loads((tmp_path / "runs/tiny/data.json").read_text())
    assert kept["training"]["classes"] == CLASSES
    assert kept["training"]["labels"] == {"images": 10, "of_class": counts, "unlabelled": 0}
    summary = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    assert summary["iterations"] == 2 and 0 <= summary["classification_map"] <= 1
