"""Label Studio's exports: choices and taxonomies of images, labels of regions."""

import csv
import json

import pytest

from tests.helpers.labels import labels_of, refusal, save_images


def choices(*names):
    return {"type": "choices", "from_name": "kind", "to_name": "image", "value": {"choices": names}}


def region(kind, *names, **place):
    return {"type": kind, "from_name": "object", "to_name": "image", "id": "r1",
            "value": {kind: names, **(place or {"x": 1, "y": 2, "width": 3, "height": 4})}}


def task(number, image, *annotations, **data):
    return {"id": number, "data": {"image": image, **data}, "predictions": [],
            "annotations": [{"id": 10 + number, "was_cancelled": False, "ground_truth": False,
                             "result": list(result), "created_at": "2024", "updated_at": "2024",
                             "lead_time": 2.5, "completed_by": 1} for result in annotations]}


TASKS = [
    task(1, "/data/upload/1/ab12cd34-a.jpg", [choices("cat", "dog")]),
    task(2, "/data/local-files/?d=photos/sub/my%20photo.png",
         [region("rectanglelabels", "dog"), region("polygonlabels", "bird", points=[[1, 2]]),
          {"type": "relation", "from_id": "r1", "to_id": "r2"}]),
    task(3, "s3://bucket/photos/c.JPG?version=3",
         [region("brushlabels", "cat", rle=[0, 1], format="rle"),
          {"type": "taxonomy", "value": {"taxonomy": [["animal", "bird"], ["animal", "dog"]]}}]),
    task(4, "/data/upload/1/0f0f0f0f-d.jpg", []),
    task(5, "/data/upload/1/0f0f0f0f-e.jpg"),
]
EXPECTED = {"a": {"cat", "dog"}, "sub/my photo": {"dog", "bird"}, "c": {"cat", "bird", "dog"},
            "d": set()}


@pytest.fixture
def root(tmp_path):
    save_images(tmp_path / "images", "a.jpg", "sub/my photo.png", "c.JPG", "d.jpg", "e.jpg")
    return tmp_path


def read(root, content):
    (root / "export.json").write_text(json.dumps(content))
    return labels_of(root, labels="export.json")


def test_json(root, capsys):
    assert read(root, TASKS) == EXPECTED
    told = capsys.readouterr().err
    assert "export.json: 4 images, 3 classes, Label Studio JSON\n" in told
    assert "1 of 5 images" in told, "what nobody has annotated takes no part"


def test_cancelled_annotations_do_not_count_and_true_ones_do_alone(root):
    tasks = [task(1, "a.jpg", [choices("cat")], [choices("dog")]), task(2, "c.JPG", []),
             task(3, "d.jpg", [choices("cat")], [choices("dog")])]
    tasks[0]["annotations"][0]["ground_truth"] = True
    tasks[1]["annotations"][0]["was_cancelled"] = True
    assert read(root, tasks) == {"a": {"cat"}, "d": {"cat", "dog"}}


def test_choices_of_a_region_are_about_the_region(root):
    about = {"type": "choices", "id": "r1", "value": {"choices": ["blurred"], "x": 1, "y": 2}}
    assert read(root, [task(1, "a.jpg", [region("rectanglelabels", "cat"), about])]) == {
        "a": {"cat"}}


def test_completions_of_old_versions_and_other_keys(root):
    old = task(1, "a.jpg", [choices("cat")])
    old["completions"] = old.pop("annotations")
    old["data"] = {"picture_of_it": "http://host/a.jpg", "text": "a cat"}
    assert read(root, [old]) == {"a": {"cat"}}


def short(number, image, **results):
    return {"image": image, "id": number, **results, "annotator": "me@home", "annotation_id": 3,
            "created_at": "2024", "updated_at": "2024", "lead_time": 2.5}


def test_json_min(root, capsys):
    assert read(root, [
        short(1, "/data/upload/1/ab12cd34-a.jpg", kind={"choices": ["cat", "dog"]}),
        short(2, "/data/local-files/?d=photos/sub/my%20photo.png",
              object=[{"x": 1, "rectanglelabels": ["dog"]}, {"polygonlabels": ["bird"]}]),
        short(3, "c.JPG", kind="cat", tree=[{"taxonomy": [["animal", "bird"], ["dog"]]}]),
        short(4, "d.jpg"),
    ]) == EXPECTED
    assert "Label Studio JSON-MIN" in capsys.readouterr().err
    assert read(root, [short(1, "a.jpg", kind="cat"), short(2, "d.jpg", kind="dog")]) == {
        "a": {"cat"}, "d": {"dog"}}


def test_json_min_has_data_before_the_id_and_results_after_it(root):
    task = {"camera": "left", "image": "a.jpg", "id": 1, "kind": "cat", "object": [
        {"rectanglelabels": ["dog"]}], "annotator": 1, "lead_time": 3}
    assert read(root, [task]) == {"a": {"cat", "dog"}}
    (root / "export.json").write_text(json.dumps([dict(sorted(task.items()))]))
    message = refusal(root, labels="export.json")
    assert "both 'camera' and 'kind' could be labels, which JSON-MIN does not tell" in message


@pytest.mark.parametrize("tasks, message", [
    ([], "names no image"),
    ([3], "[0] must be a mapping, not 3"),
    ([{"data": 3}], "[0].data must be a mapping"),
    ([task(1, "a.jpg", [{"value": {"choices": "cat"}}])], "value.choices must be a list"),
    ([task(1, "a.jpg", [{"value": {"taxonomy": ["cat"]}}])], "value.taxonomy[0] must be a list"),
    ([{"data": {"text": "x"}, "annotations": [{}]}], "task 0: 0 of its data are names of images"),
    ([task(1, "none.jpg", [choices("x")])], "task 1: there is no image 'none.jpg'"),
    ([short(1, "a.jpg", kind={"choices": [3]})], "task 1, kind: [0].choices[0] must be of type"),
])
def test_mistakes(root, tasks, message):
    (root / "export.json").write_text(json.dumps(tasks))
    assert message in refusal(root, labels="export.json")


CONFIG = """<View><Image name="image" value="$image"/>
<Choices name="kind" toName="image"><Choice value="cat"/><Choice value="dog"/></Choices>
<RectangleLabels name="object" toName="image"><Label value="dog"/><Label value="bird"/>
</RectangleLabels></View>"""


def test_what_label_studio_makes_of_its_json_says_the_same(root, tmp_path):
    converter = pytest.importorskip("label_studio_sdk.converter")
    place = {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 0}
    size = {"original_width": 12, "original_height": 8}
    tasks = [task(1, "a.jpg", [choices("cat")]),
             task(2, "c.JPG", [choices("cat"), region("rectanglelabels", "bird", **place) | size]),
             task(3, "d.jpg", [choices("dog"), region("rectanglelabels", "dog", **place) | size])]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    expected = {"a": {"cat"}, "c": {"cat", "bird"}, "d": {"dog"}}
    assert labels_of(root, labels="tasks.json") == expected
    made = converter.Converter(CONFIG, str(tmp_path))
    made.convert_to_json_min(str(tmp_path / "tasks.json"), str(tmp_path / "min"), is_dir=False)
    assert labels_of(root, labels="min/result.json") == expected


def write_csv(path, tasks, delimiter=","):
    """As Label Studio does: JSON-MIN in a table, what is no text as JSON."""
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(tasks[0])
        for one in tasks:
            table.writerow([v if isinstance(v, str) else json.dumps(v) for v in one.values()])


@pytest.mark.parametrize("order", [list, sorted])
@pytest.mark.parametrize("name, delimiter", [("export.csv", ","), ("export.tsv", "\t")])
def test_csv(root, capsys, order, name, delimiter):
    tasks = [short(1, "/data/upload/1/ab12cd34-a.jpg", animal={"choices": ["cat", "dog"]}),
             short(2, "sub/my photo.png", animal="bird"), short(4, "d.jpg", animal="")]
    write_csv(root / name, [dict(order(one.items())) for one in tasks], delimiter)
    assert labels_of(root, labels=name) == {
        "a": {"cat", "dog"}, "sub/my photo": {"bird"}, "d": set()}
    assert f"{name}: 3 images, 3 classes, Label Studio CSV" in capsys.readouterr().err


def test_regions_in_csv(root):
    place = {"x": 1.5, "y": 2, "width": 3, "height": 4}
    tasks = [short(k, image, label=[place | {"rectanglelabels": [name]}])
             for k, image, name in ((1, "a.jpg", "cat"), (2, "c.JPG", "dog"))]
    write_csv(root / "export.csv", tasks)
    assert labels_of(root, labels="export.csv") == {"a": {"cat"}, "c": {"dog"}}


def test_annotations_of_one_task_are_tasks_of_json_min_and_count_together(root):
    assert read(root, [short(1, "a.jpg", kind="cat"), short(1, "a.jpg", kind="dog")]) == {
        "a": {"cat", "dog"}}
    (root / "export.json").write_text(json.dumps([
        short(1, "a.jpg", kind="cat"), short(2, "a.jpg", kind="dog")]))
    assert "has a row already" in refusal(root, labels="export.json")
    (root / "export.json").write_text(json.dumps([
        {"image": "a.jpg", "annotations": [{"label": "cat", "coordinates": {"x": 1}}]}]))
    assert "there is no class in it" in refusal(root, labels="export.json"), "CreateML"
