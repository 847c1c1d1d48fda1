"""infer.py with everything that goes beyond masks: CRF, windows, labels, summary, scores."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import cosa
import infer
from cosa.core.errors import UserError
from cosa.crf import PRESETS, dense_crf
from cosa.data.folder import FolderDataset
from cosa.data.images import network_input
from cosa.data.labels import read_labels
from cosa.evaluate import evaluate
from cosa.inference import segmenter
from cosa.inference.choose_settings import choose_settings
from cosa.inference.summary import Summary
from cosa.metrics import SegmentationMetrics
from cosa.predict import multi_scale
from tests.helpers.inference import CLASSES, SIZE, files, read, refusal, run_main, save, save_smooth


@pytest.fixture
def photos(tmp_path):
    """Five images, two of them below a/."""
    for k in range(3):
        save_smooth(tmp_path / f"in/{k}.png", (40 + k, 30), seed=k)
    for k in range(3, 5):
        save_smooth(tmp_path / f"in/a/{k}.jpg", (30, 40 + k), seed=k)
    return tmp_path / "in"


NAMES = ["0.png", "1.png", "2.png", "a/3.jpg", "a/4.jpg"]


def stem(name):
    return name.rsplit(".", 1)[0]


def labelled(photos, labels, truth):
    return FolderDataset(CLASSES, photos, read_labels(labels, known=CLASSES), truth)


def labels_file(path, rows):
    path.write_text("image,labels\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def usage_error(capfd, *arguments):
    with pytest.raises(SystemExit) as caught:
        infer.parse(["in", "--weights", "w", "--output", "o", *arguments])
    assert caught.value.code == 2
    return capfd.readouterr().err.splitlines()[-1]


def test_options_that_would_be_ignored_are_refused(capfd):
    for option in ("--crf-backend torch", "--crf-iterations 3", "--crf-gaussian 1 1",
                   "--crf-bilateral 4 121 5"):
        assert "is of use with --crf only" in usage_error(capfd, *option.split())
    for option in ("--window 5", "--stride 5"):
        assert "with --mode slide only" in usage_error(capfd, *option.split())
    assert "with --mode whole only" in usage_error(capfd, *"--mode slide --size 5".split())
    assert "with --save cpl only" in usage_error(capfd, "--threshold", "0.5")
    for option in ("--threshold 1.5", "--max-size 0", "--crf-bilateral 4 -1 5", "--save ,"):
        usage_error(capfd, *option.split())
    error = usage_error(capfd, "--save", "mask,probabilites")
    assert "did you mean 'probabilities'?" in error


@pytest.mark.parametrize("options, told", [
    ("--scales 0", "--scales is [0.0]: each must lie in 0.01..16"),
    ("--scales 1 1e9", "--scales is [1.0, 1000000000.0]: each must lie in 0.01..16"),
    ("--scales x", "--scales: 'x' must be a number"),
    ("--scales", "--scales: expected at least one argument"),
    ("--size 1.5", "--size: '1.5' must be a whole number"),
    ("--size 1000000000", "--size is 1000000000: it must lie in 1..16384"),
    ("--batch-size 0", "--batch-size is 0: it must lie in 1..65536"),
    ("--crf --crf-iterations 1000000000",
     "--crf-iterations is 1000000000: it must lie in 1..1000"),
    ("--workers -1", "--workers is -1: it must lie in 1..256"),
    ("--min-class-score 2", "--min-class-score is 2.0: it must lie in 0..1"),
    ("--threshold nan", "--threshold is nan: it must lie in 0..1"),
    ("--crf --crf-bilateral a 1 1", "--crf-bilateral: 'a' must be a number"),
    ("--crf --crf-gaussian 1 0",
     "--crf-gaussian is [1.0, 0.0]: the numbers must lie in 0..1000000, 0.01..100000"),
    ("--save maks", "--save: 'maks' cannot be saved; did you mean 'mask'?"),
    ("--save x", "--save: 'x' cannot be saved; choose from mask,overlay,cam,cpl,probabilities,"
                 "index,geotiff,regions,certainty"),
    ("--weigths w", "there is no option --weigths; did you mean '--weights'?"),
    ("--frobnicate", "there is no option --frobnicate; --help lists all options"),
    ("b.jpg c.jpg", "'b.jpg' is one argument too many: give one folder or image, or a glob in "
                    "quotes, or the shell puts all its files in its place"),
    ("--mode slide --size 5", "--size is of use with --mode whole only: add that, or leave it out"),
])
def test_one_sentence_says_what_is_wrong_with_an_option(capfd, options, told):
    assert usage_error(capfd, *options.split()) == f"error: {told}"


def test_what_must_be_given_is_told(capfd):
    with pytest.raises(SystemExit) as caught:
        infer.parse(["in", "--save", "cam"])
    assert caught.value.code == 2
    assert capfd.readouterr().err == (
        "error: --weights, --output must be given; --help lists all options\n"
    )


def test_a_device_that_is_not_there_is_told(tmp_path, photos, weights, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError) as caught:
        infer.main([str(photos), "--weights", str(weights), "--output", str(tmp_path / "out"),
                    "--device", "cuda:1"])
    assert str(caught.value) == (
        "device 'cuda:1' is not there (0 CUDA devices found): use --device auto or --device cpu"
    )


def test_a_folder_is_called_a_folder_and_a_file_a_file(tmp_path, photos, weights):
    out, file = tmp_path / "out", tmp_path / "file"
    file.write_text("")
    told = {
        ("--labels", tmp_path / "x"): f"{tmp_path / 'x'}: no such file or folder; set --labels to "
                                      "where the labels are",
        ("--json", photos): f"cannot write {photos}: it is a folder; choose another name",
        ("--json", file / "s"): f"cannot write {file / 's'}: {file} is no folder; choose another "
                                "name",
        ("--crf", "relese"): "--crf relese is no preset; did you mean 'release'?",
        ("--crf", "x"): "--crf x is no preset; choose one of release, toco, deeplab",
    }
    for options, sentence in told.items():
        assert refusal(weights, photos, out, *options) == sentence
    assert refusal(photos, photos, out) == (
        f"{photos} cannot be read (it is a folder): give the best.pth or last.pth of a run folder, "
        "or a copy of the file"
    )
    hint = "; if a model on the hub is meant, write hf-hub:user/pets-v1.0"
    assert refusal("user/pets-v1.0", photos, out).endswith(f"a copy of the file{hint}")
    for other in ("user/pets.pth", "tests/pets", tmp_path / "user/pets"):
        assert "hub" not in refusal(other, photos, out)
    assert refusal(file, photos, out) == (
        f"{file} is empty: give the best.pth or last.pth of a run folder, or a copy of the file"
    )
    for output in (file, file / "x"):
        assert refusal(weights, photos, output) == (
            f"--output {output}: cannot write there, since {file} is no folder; choose another"
        )
    assert not out.exists()


def test_save_and_overlay_say_what_is_written():
    def kinds(*options):
        return infer.parse(["in", "--weights", "w", "--output", "o", *options]).save

    assert kinds() == ("mask",)
    assert kinds("--overlay") == kinds("--save", "overlay,mask") == ("mask", "overlay")
    assert kinds("--save", "cpl, cam,cpl") == ("cam", "cpl")
    assert kinds("--save", "cam", "--overlay") == ("overlay", "cam")


def test_everything_at_once(tmp_path, photos, program):
    save_all = ("--save", "mask,overlay,cam,cpl,probabilities")
    code, out, err = program(photos, tmp_path / "out", *save_all)
    assert (code, err) == (0, "") and "5 done" in out
    endings = (".png", ".overlay.png", ".cam.npz", ".cpl.png", ".probabilities.npz")
    expected = [stem(name) + ending for name in NAMES for ending in endings]
    assert files(tmp_path / "out") == sorted([*expected, "classes.csv"])
    for name in NAMES:
        with Image.open(photos / name) as image:
            assert read(tmp_path / f"out/{stem(name)}.cpl.png").shape == image.size[::-1]
    # Nothing that is added changes the masks.
    assert program(photos, tmp_path / "plain")[0] == 0
    for name in NAMES:
        mask = (tmp_path / f"plain/{stem(name)}.png").read_bytes()
        assert mask == (tmp_path / f"out/{stem(name)}.png").read_bytes()


def test_threshold_of_the_pseudo_labels(tmp_path, photos, program, weights):
    shares = []
    for folder, options in (("low", ["--threshold", "0"]), ("own", []),
                            ("same", ["--threshold", "0.4"]), ("high", ["--threshold", "1"])):
        assert program(photos, tmp_path / folder, "--save", "cpl", *options)[0] == 0
        masks = [read(tmp_path / folder / f"{stem(name)}.cpl.png") for name in NAMES]
        shares.append(sum((mask > 0).sum() for mask in masks))
    assert shares[0] > shares[1] == shares[2] > shares[3]  # 0.4 is the threshold of the weights
    content = torch.load(weights, weights_only=True)
    content["about"]["thresholds"] = [None, None]
    torch.save(content, tmp_path / "none.pt")
    message = refusal(tmp_path / "none.pt", photos, tmp_path / "none", "--save", "cpl")
    assert "holds no threshold" in message and "--threshold" in message
    given = ("--save", "cpl", "--threshold", "0.3")
    assert run_main(tmp_path / "none.pt", photos, tmp_path / "none", *given) == 0


@pytest.mark.parametrize(
    "options, expected",
    [
        ([], {**PRESETS["release"], "backend": "torch"}),
        (["deeplab"], {**PRESETS["deeplab"], "backend": "torch"}),
        (["toco", "--crf-iterations", "3"], {**PRESETS["toco"], "iterations": 3,
                                             "backend": "torch"}),
        (["--crf-gaussian", "2", "3", "--crf-bilateral", "5", "50", "7"],
         {"iterations": 1, "gaussian": (2, 3), "bilateral": (5, 50, 7), "backend": "torch"}),
    ],
)
def test_presets_of_the_crf_and_their_numbers(tmp_path, program, monkeypatch, options, expected):
    seen = []

    def fake(image, probabilities, **numbers):
        seen.append(numbers)
        return probabilities

    monkeypatch.setattr(segmenter, "dense_crf", fake)
    path = save_smooth(tmp_path / "a.png")
    assert program(path, tmp_path / "out", "--crf", *options)[0] == 0
    assert seen[-1] == expected


def test_crf_refines_the_probabilities_of_the_network(tmp_path, program, weights):
    path = save_smooth(tmp_path / "a.png", (60, 45))
    assert program(path, tmp_path / "plain", "--save", "mask,probabilities")[0] == 0
    assert program(path, tmp_path / "crf", "--crf", "toco", "--batch-size", "2")[0] == 0
    before, after = read(tmp_path / "plain/a.png"), read(tmp_path / "crf/a.png")
    assert 0 < (before != after).mean() < 0.5
    network = cosa.load(weights)
    settings = choose_settings(
        infer.parse([str(path), "--weights", "w", "--output", "o"]), network, None, None
    )
    with Image.open(path) as image:
        use = segmenter.Segmenter(network, settings)
        (maps,) = use.predict([use.prepare(image, None)])
        logits = segmenter.resize(maps.seg[None] / maps.passes, (45, 60))[0]
        expected = dense_crf(np.array(image), logits.softmax(0), **PRESETS["toco"]).argmax(0)
    assert (after == expected.numpy()).mean() > 0.999


def test_backend_pydensecrf_agrees_or_says_what_to_install(tmp_path, program, weights):
    path = save_smooth(tmp_path / "a.png", (60, 45))
    options = ("--crf", "--crf-backend", "pydensecrf")
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        assert "pydensecrf2" in refusal(weights, path, tmp_path / "out", *options)
        assert not (tmp_path / "out").exists()
        return
    assert program(path, tmp_path / "out", *options)[0] == 0
    assert program(path, tmp_path / "torch", "--crf")[0] == 0
    assert (read(tmp_path / "out/a.png") == read(tmp_path / "torch/a.png")).mean() > 0.95


def test_crf_refuses_nonsense_before_it_starts(tmp_path, weights):
    path = save_smooth(tmp_path / "a.png")
    message = refusal(weights, path, tmp_path / "out", "--crf", "realease")
    assert "--crf realease is no preset; did you mean 'release'?" in message
    assert not (tmp_path / "out").exists()


def test_slide_mode(tmp_path, photos, program, weights):
    big = save_smooth(photos / "big.png", (150, 90))
    save(photos / "dot.png", (1, 1))
    save(photos / "line.png", (90, 2))
    slide = ("--mode", "slide", "--scales", "1", "--no-flip")
    assert program(photos, tmp_path / "out", *slide)[0] == 0
    assert read(tmp_path / "out/big.png").shape == (90, 150)
    assert read(tmp_path / "out/dot.png").shape == (1, 1)
    assert read(tmp_path / "out/line.png").shape == (2, 90)
    # The default window is the network's image size, the default stride two thirds of it.
    own = ("--window", str(SIZE), "--stride", "22")
    assert program(big, tmp_path / "own", *slide, *own)[0] == 0
    assert (tmp_path / "own/big.png").read_bytes() == (tmp_path / "out/big.png").read_bytes()
    # A large photograph costs what max-size allows, and its mask has its size.
    assert program(big, tmp_path / "small", *slide, "--max-size", "40")[0] == 0
    assert read(tmp_path / "small/big.png").shape == (90, 150)
    assert program(big, tmp_path / "whole", "--scales", "1", "--no-flip")[0] == 0
    masks = [(tmp_path / f"{f}/big.png").read_bytes() for f in ("own", "small", "whole")]
    assert len(set(masks)) == 3
    message = refusal(weights, big, tmp_path / "x", *slide, "--window", "16", "--stride", "17")
    assert "--stride 17 leaves gaps" in message


def test_labels_filter_by_name(tmp_path, photos, program):
    rows = ["0.png,cat;dog, big".replace("dog, big", "ship"), "1,", "2.PNG,ship", "a\\3.jpg,cat",
            'a/4,"dog, big"', "elsewhere/5.jpg,cat"]
    labels = labels_file(tmp_path / "labels.csv", rows)
    code, out, err = program(photos, tmp_path / "out", "--labels", labels, "--save", "mask,cam")
    told = f"note: {labels}: 6 images, 3 classes, CSV, labels between ';'\n"
    assert (code, err) == (0, told)
    for name, present in zip(NAMES, ([1, 3], [], [3], [1], [2]), strict=True):
        assert set(np.unique(read(tmp_path / f"out/{stem(name)}.png"))) <= {0, *present}
        with np.load(tmp_path / f"out/{stem(name)}.cam.npz") as saved:
            assert saved["classes"].tolist() == present


def test_labels_of_another_format(tmp_path, photos, program):
    """COCO's JSON, images by another machine's paths; a run goes on with the same labels."""
    path, numbers = tmp_path / "labels.json", {"cat": 5, "dog, big": 2, "ship": 9}
    present = (["cat", "ship"], [], ["ship"], ["cat"], ["dog, big"])
    path.write_text(json.dumps({
        "images": [{"id": k, "file_name": f"D:\\photos\\{name}"} for k, name in enumerate(NAMES)],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": [{"image_id": k, "category_id": numbers[label]}
                        for k, found in enumerate(present) for label in found],
    }))
    code, _, err = program(photos, tmp_path / "out", "--labels", path, "--save", "cam")
    assert (code, err) == (0, f"note: {path}: 5 images, 3 classes, COCO JSON\n")
    for name, found in zip(NAMES, present, strict=True):
        with np.load(tmp_path / f"out/{stem(name)}.cam.npz") as saved:
            assert [CLASSES[k - 1] for k in saved["classes"]] == found
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    code, out, _ = program(photos, tmp_path / "out", "--labels", path, "--save", "cam")
    assert code == 0 and "5 skipped" in out


def test_an_image_without_a_row_of_labels_fails(tmp_path, photos, program):
    labels = labels_file(tmp_path / "labels.csv", ["0.png,cat", "1.png,", "2.png,", "a/4.jpg,"])
    code, out, err = program(photos, tmp_path / "out", "--labels", labels)
    assert code == 1 and "4 done" in out and "1 failed" in out
    assert err == (
        f"note: {labels}: 4 images, 1 class, CSV, one label per image\n"
        f"failed: a/3.jpg has no row in {labels}: add one (without labels if it holds no class), "
        "and give --overwrite or another --output with it, since a run does not go on with other "
        "labels\n"
    )
    assert not (tmp_path / "out/a/3.png").exists()


def test_labels_that_do_not_fit(tmp_path, photos, weights):
    def message(*rows):
        labels = labels_file(tmp_path / "labels.csv", rows)
        return refusal(weights, photos, tmp_path / "out", "--labels", labels)

    assert message("0.png,", "1.png,cat;shipp").endswith(
        "labels.csv, line 3: 'shipp' is no class of the weights; did you mean 'ship'?"
    )
    assert "line 3: the image '0.png' has a row already" in message("0.png,", "0.png,cat")
    absent = refusal(weights, photos, tmp_path / "out", "--labels", tmp_path / "absent.csv")
    assert "absent.csv: no such file or folder" in absent
    assert not (tmp_path / "out").exists()


def test_summary(tmp_path, photos, program, weights):
    (photos / "b.jpg").write_text("no image")
    target = tmp_path / "new/summary.json"
    code, _, _ = program(photos, tmp_path / "out", "--json", target)
    assert code == 1
    content = json.loads(target.read_text())
    assert [entry["path"] for entry in content["images"]] == [*NAMES, "b.jpg"]
    for entry in content["images"][:-1]:
        mask = read(tmp_path / f"out/{stem(entry['path'])}.png")
        assert entry["size"] == [mask.shape[1], mask.shape[0]]
        assert [c["index"] for c in entry["classes"]] == np.unique(mask).tolist()
        for found in entry["classes"]:
            assert found["name"] == ("background", *CLASSES)[found["index"]]
            assert found["share"] == pytest.approx((mask == found["index"]).mean(), abs=1e-6)
            assert 0.25 < found["probability"] <= 1
        assert entry["seconds"] > 0 and entry["error"] is None and entry["skipped"] is False
    assert "b.jpg" in content["images"][-1]["error"] and "size" not in content["images"][-1]
    run = content["run"]
    assert (run["done"], run["skipped"], run["failed"], run["interrupted"]) == (5, 0, 1, False)
    assert run["images_per_second"] > 0 and run["seconds"] > 0 and run["scores"] is None
    assert run["made_with"]["mask"]["scales"] == [1.0, 0.5]
    assert len(run["made_with"]["mask"]["weights_sha256"]) == 64
    assert (run["weights"], run["output"]) == (str(weights), str(tmp_path / "out"))
    # Each image has its line: readable piece by piece, however many there are.
    lines = target.read_text().splitlines()
    assert sum(line.startswith('{"path": ') for line in lines) == 6
    assert files(tmp_path / "new") == ["summary.json"]


def test_summary_of_a_second_run_knows_the_first(tmp_path, photos, program):
    assert program(photos, tmp_path / "out")[0] == 0
    (tmp_path / "out/1.png").unlink()
    (tmp_path / "out/a/3.png").write_bytes(b"damaged")
    code, out, err = program(photos, tmp_path / "out", "--json", tmp_path / "s.json")
    assert code == 1 and "1 done" in out and "3 skipped" in out and "1 failed" in out
    content = json.loads((tmp_path / "s.json").read_text())
    assert [entry["path"] for entry in content["images"]] == NAMES
    assert [entry["skipped"] for entry in content["images"]] == [True, False, True, True, True]
    first = content["images"][0]
    assert first["seconds"] is None and first["size"] == [40, 30]
    assert {found["probability"] for found in first["classes"]} == {None}
    assert sum(found["share"] for found in first["classes"]) == pytest.approx(1, abs=1e-5)
    assert f"failed: {tmp_path / 'out/a/3.png'} is not an image" in err


def test_summary_takes_no_other_files_name(tmp_path, photos, weights):
    labels = labels_file(tmp_path / "labels.csv", [f"{name}," for name in NAMES])
    options = ("--labels", labels, "--json")
    for name in (weights, labels, photos / "0.png", tmp_path / "out/a/3.png",
                 tmp_path / "out/classes.csv", tmp_path / "out/.cosa.json"):
        assert "is the name of another file" in refusal(
            weights, photos, tmp_path / "out", *options, name
        )
    assert "is a folder" in refusal(weights, photos, tmp_path / "out", "--json", tmp_path)
    (tmp_path / "file").write_text("")
    assert "cannot write" in refusal(
        weights, photos, tmp_path / "out", "--json", tmp_path / "file/s.json"
    )
    assert not (tmp_path / "out").exists()


def true_masks(photos, folder, classes=4):
    for name in NAMES:
        with Image.open(photos / name) as image:
            size = image.size[::-1]
        mask = np.random.default_rng(len(name)).integers(0, classes, size, np.uint8)
        mask[:2] = 255
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / f"{stem(name)}.png")
    return folder


def expected_scores(truth, output):
    metrics = SegmentationMetrics(4, boundary=True)
    for name in NAMES:
        with Image.open(truth / f"{stem(name)}.png") as mask:
            metrics.update(read(output / f"{stem(name)}.png"), np.array(mask))
    return metrics.compute()


def test_scores_of_the_same_pass(tmp_path, photos, program):
    truth, out = true_masks(photos, tmp_path / "truth"), tmp_path / "out"
    options = ("--evaluate", truth, "--json", tmp_path / "s.json")
    code, text, err = program(photos, out, *options)
    assert (code, err) == (0, "")
    expected = expected_scores(truth, out)
    scores = json.loads((tmp_path / "s.json").read_text())["run"]["scores"]
    for key in ("miou", "boundary_f", "jf"):
        assert scores[key] == pytest.approx(expected[key])
    assert list(scores["iou"]) == ["background", *CLASSES] and scores["images"] == 5
    assert list(scores["iou"].values()) == pytest.approx(expected["iou"])
    assert list(scores["boundary_f_classes"].values()) == pytest.approx(
        expected["boundary_f_classes"]
    )
    assert f"{100 * expected['miou']:5.1f}  label-free" in text and "dog, big" in text
    assert "J&F" in text and "5 images scored" in text
    # What is there already is scored, too, partly or wholly, and without masks computed again.
    (out / "1.png").unlink()
    for done in ("1 done", "0 done"):
        code, text, _ = program(photos, out, *options)
        assert code == 0 and done in text
        assert json.loads((tmp_path / "s.json").read_text())["run"]["scores"] == scores
    for _ in range(2):
        code, text, _ = program(photos, tmp_path / "cams", "--save", "cam", *options)
        assert code == 0 and "5 done" in text
        assert json.loads((tmp_path / "s.json").read_text())["run"]["scores"] == scores
    assert not list((tmp_path / "cams").glob("?.png"))


def test_scores_are_those_of_the_evaluation_in_training(tmp_path, photos, program, weights):
    truth = true_masks(photos, tmp_path / "truth")
    cats = np.random.default_rng(0).integers(0, 2, (30, 40), np.uint8)  # one mask is as labelled
    Image.fromarray(cats).save(truth / "0.png")
    present = ["cat", "ship;cat", "", "dog, big", "ship"]
    rows = [f'{name},"{labels}"' for name, labels in zip(NAMES, present, strict=True)]
    labels = labels_file(tmp_path / "labels.csv", rows)
    dataset = labelled(photos, labels, truth)
    network = cosa.load(weights)
    expected = evaluate(network, dataset, image_size=SIZE, scales=(1.0, 0.5), progress=False)
    summary = ("--evaluate", truth, "--json", tmp_path / "s.json")
    assert program(photos, tmp_path / "out", *summary)[0] == 0
    scores = json.loads((tmp_path / "s.json").read_text())["run"]["scores"]
    for key in ("miou", "boundary_f", "jf", "iou"):
        assert scores[key] == pytest.approx(expected[key], abs=1e-3)
    assert program(photos, tmp_path / "filtered", "--labels", labels, *summary)[0] == 0
    scores = json.loads((tmp_path / "s.json").read_text())["run"]["scores"]
    assert scores["miou_label_filtered"] == pytest.approx(expected["miou_label_filtered"], abs=1e-3)
    assert abs(expected["miou"] - expected["miou_label_filtered"]) > 0.01


def test_scores_without_denied_classes_are_those_of_the_evaluation(
    tmp_path, photos, program, weights
):
    truth = true_masks(photos, tmp_path / "truth")
    labels = labels_file(tmp_path / "labels.csv", [f"{name},cat" for name in NAMES])
    dataset, network = labelled(photos, labels, truth), cosa.load(weights)
    least = middle_score(network, photos)
    options = {"image_size": SIZE, "scales": (1.0, 0.5), "progress": False}
    expected = evaluate(network, dataset, min_class_score=least, **options)
    assert abs(expected["miou"] - evaluate(network, dataset, **options)["miou"]) > 0.005
    summary = ("--evaluate", truth, "--json", tmp_path / "s.json")
    assert program(photos, tmp_path / "out", *summary, "--min-class-score", least)[0] == 0
    scores = json.loads((tmp_path / "s.json").read_text())["run"]["scores"]
    for key in ("miou", "boundary_f", "jf", "iou"):
        assert scores[key] == pytest.approx(expected[key], abs=1e-3)
    # By default, it is that of the evaluation in training.
    content = torch.load(weights, weights_only=True)
    content["about"]["config"]["evaluate"]["min_class_score"] = least
    torch.save(content, tmp_path / "strict.pt")
    for out, more in (("own", ()), ("given", ("--min-class-score", "0"))):
        assert run_main(tmp_path / "strict.pt", photos, tmp_path / out, *more) == 0
    assert masks_of(tmp_path / "own") == masks_of(tmp_path / "out")
    assert program(photos, tmp_path / "every")[0] == 0
    assert masks_of(tmp_path / "given") == masks_of(tmp_path / "every")
    assert masks_of(tmp_path / "every") != masks_of(tmp_path / "out")


def middle_score(network, photos):
    """The median probability that the network says of a class in these images."""
    scores = []
    for name in NAMES:
        with Image.open(photos / name) as image:
            square = network_input(image.convert("RGB"), SIZE)[None]
        scores.append(multi_scale(network, square, (1.0, 0.5), maps=()).logits)
    return torch.cat(scores).sigmoid().median().item()


def masks_of(folder):
    return [(folder / f"{stem(name)}.png").read_bytes() for name in NAMES]


@pytest.mark.parametrize("crf", [(), ("--crf", "--crf-iterations", "2")])
def test_denied_classes_are_left_out_as_if_labels_said_so(tmp_path, photos, program, weights, crf):
    network, rows = cosa.load(weights), []
    least = middle_score(network, photos)
    for name in NAMES:
        with Image.open(photos / name) as image:
            square = network_input(image.convert("RGB"), SIZE)[None]
        chances = multi_scale(network, square, (1.0, 0.5), maps=()).logits[0].sigmoid()
        kept = [c for c, p in zip(CLASSES, chances, strict=True)
                if p >= least or p == chances.max()]
        rows.append(f'{name},"{";".join(kept)}"')
    assert len({row.split(",", 1)[1] for row in rows}) > 1
    labels = labels_file(tmp_path / "labels.csv", rows)
    assert program(photos, tmp_path / "found", "--min-class-score", least, *crf)[0] == 0
    assert program(photos, tmp_path / "by_hand", "--labels", labels, *crf)[0] == 0
    assert masks_of(tmp_path / "found") == masks_of(tmp_path / "by_hand")
    # Where labels say it, the scores do not matter: neither for what is made nor for its record.
    again = ("--labels", labels, "--min-class-score", "0.9", *crf)
    assert "5 skipped" in program(photos, tmp_path / "by_hand", *again)[1]
    assert "5 done" in program(photos, tmp_path / "known", *again)[1]
    assert masks_of(tmp_path / "known") == masks_of(tmp_path / "by_hand")


def test_scores_of_label_filtered_masks_have_another_name(tmp_path, photos, program):
    truth = true_masks(photos, tmp_path / "truth")
    rows = [f"{name},cat;ship" for name in NAMES[1:]]
    labels = labels_file(tmp_path / "labels.csv", [f'{NAMES[0]},"cat;dog, big;ship"', *rows])
    options = ("--labels", labels, "--evaluate", truth, "--json", tmp_path / "s.json")
    code, text, _ = program(photos, tmp_path / "out", *options)
    assert code == 0 and "filtered by image labels" in text and "label-free" not in text
    scores = json.loads((tmp_path / "s.json").read_text())["run"]["scores"]
    assert "miou" not in scores and "jf" not in scores
    expected = expected_scores(truth, tmp_path / "out")
    assert scores["miou_label_filtered"] == pytest.approx(expected["miou"])


def test_coexistence_classes_of_the_weights_have_a_score(tmp_path, photos, program, weights):
    truth = true_masks(photos, tmp_path / "truth")
    options = ("--evaluate", truth, "--json", tmp_path / "s.json")
    assert "C-mIoU" not in program(photos, tmp_path / "out", *options)[1]
    assert "cmiou" not in json.loads((tmp_path / "s.json").read_text())["run"]["scores"]
    content = torch.load(weights, weights_only=True)
    content["about"]["config"]["evaluate"]["coexistence_classes"] = ["ship", "cat"]
    torch.save(content, tmp_path / "named.pt")
    assert infer.main([*map(str, (photos, "--output", tmp_path / "out", *options)), "--weights",
                       str(tmp_path / "named.pt"), "--device", "cpu"]) == 0
    expected = expected_scores(truth, tmp_path / "out")["iou"]
    expected = (expected[1] + expected[3]) / 2
    scores = json.loads((tmp_path / "s.json").read_text())["run"]["scores"]
    assert scores["cmiou"] == pytest.approx(expected) and expected > 0
    content["about"]["config"]["evaluate"]["coexistence_classes"] = ["shipp"]
    torch.save(content, tmp_path / "named.pt")
    message = refusal(tmp_path / "named.pt", photos, tmp_path / "out", *options)
    assert "'shipp'" in message and "did you mean 'ship'" in message


def test_scores_are_told_though_the_summary_cannot_be_written(
    tmp_path, photos, weights, monkeypatch, capfd
):
    truth = true_masks(photos, tmp_path / "truth")

    def full(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(Summary, "finish", full)
    options = ("--evaluate", truth, "--json", tmp_path / "s.json")
    assert refusal(weights, photos, tmp_path / "out", *options) == "the disk is full"
    counted, *table = capfd.readouterr().out.splitlines()
    assert counted.startswith("5 done") and table[-1] == "5 images scored"
    assert not (tmp_path / "s.json").exists()


def test_a_mask_too_large_to_score_is_told(tmp_path, photos, program, monkeypatch):
    truth = true_masks(photos, tmp_path / "truth")
    real = SegmentationMetrics.update

    def failing(metrics, prediction, target):
        if prediction.shape == (30, 41):
            raise MemoryError
        real(metrics, prediction, target)

    monkeypatch.setattr(SegmentationMetrics, "update", failing)
    code, text, err = program(photos, tmp_path / "out", "--evaluate", truth)
    assert code == 1 and "4 images scored" in text and "1 not scored" in text
    assert err.startswith(f"not scored: {photos / '1.png'} is not scored: it is too large")


def test_masks_that_do_not_fit_are_told_one_by_one(tmp_path, photos, program, weights):
    truth = true_masks(photos, tmp_path / "truth")
    (truth / "0.png").unlink()
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(truth / "1.png")
    Image.fromarray(np.full((30, 42), 77, np.uint8)).save(truth / "2.png")
    (photos / "a/4.jpg").write_text("no image")  # has failed already, and is not told twice
    code, out, err = program(photos, tmp_path / "out", "--evaluate", truth,
                             "--json", tmp_path / "s.json")
    lines = sorted(err.splitlines())
    assert code == 1 and len(lines) == 4 and lines[0].startswith("failed: ")
    assert "4 done" in out and "1 failed, 3 not scored" in out and "1 images scored" in out
    assert lines[1] == (
        f"not scored: {photos / '0.png'} is not scored: there is no mask {truth / '0.png'}"
    )
    assert "1.png: the mask is 5x3 pixels but" in lines[2] and "is 41x30" in lines[2]
    assert "2.png: the mask holds the value 77" in lines[3]
    entries = json.loads((tmp_path / "s.json").read_text())["images"]
    assert ["unscored" in entry for entry in entries] == [True, True, True, False, False]
    assert json.loads((tmp_path / "s.json").read_text())["run"]["scores"]["images"] == 1
    assert "classes; those that occur nowhere count as 100" in out
    # Of a set of which no mask can be scored, nothing is begun.
    message = refusal(weights, photos / "*.png", tmp_path / "own", "--evaluate", truth)
    assert "none of 2 true masks can be scored" in message and "1.png" in message
    assert not (tmp_path / "own").exists()


def test_masks_that_are_not_there_at_all(tmp_path, photos, weights):
    (tmp_path / "empty").mkdir()
    message = refusal(weights, photos, tmp_path / "out", "--evaluate", tmp_path / "empty")
    assert "no mask belongs to an image" in message and str(tmp_path / "empty/0.png") in message
    message = refusal(weights, photos, tmp_path / "out", "--evaluate", tmp_path / "absent")
    assert "is no folder" in message
    assert not (tmp_path / "out").exists()


def test_results_of_other_settings_are_not_mixed(tmp_path, photos, program, weights):
    labels = labels_file(tmp_path / "labels.csv", [f"{name},cat" for name in NAMES])
    out = tmp_path / "out"
    assert program(photos, out)[0] == 0
    for options, named in (
        (["--crf"], "crf, max-size"),
        (["--scales", "1"], "scales"),
        (["--no-flip"], "flip"),
        (["--size", "24"], "size"),
        (["--labels", labels], "labels"),
        (["--min-class-score", "0.4"], "min-class-score"),
        (["--mode", "slide"], "max-size, mode, size, stride, window"),
    ):
        assert refusal(weights, photos, out, *options) == (
            f"{out} holds masks made with other settings ({named}): --overwrite or another "
            "--output"
        )
    assert "5 skipped" in program(photos, out, "--scales", "1", "0.5", "--batch-size", "2")[1]
    least = ("--min-class-score", "0.4")
    assert "5 done" in program(photos, out, *least, "--overwrite")[1]
    assert "5 skipped" in program(photos, out, *least)[1]
    for other in ((), ("--min-class-score", "0.5")):
        assert "other settings (min-class-score)" in refusal(weights, photos, out, *other)
    assert "5 done" in program(photos, out, "--overwrite", "--min-class-score", "0")[1]
    assert "5 skipped" in program(photos, out)[1]
    # Kinds that do not depend on a setting do not mind it, and are noted beside the masks.
    assert "5 done" in program(photos, out, "--save", "cam", "--crf", *least)[1]
    assert "5 done" in program(photos, out, "--save", "mask,cpl", "--threshold", "0.3")[1]
    message = refusal(weights, photos, out, "--save", "mask,cpl")
    assert "holds CAM pseudo-labels made with other settings (threshold)" in message
    assert "5 skipped" in program(photos, out)[1]
    assert "5 done" in program(photos, out, "--crf", "--overwrite")[1]
    assert "other settings (crf" in refusal(weights, photos, out)
    assert "5 skipped" in program(photos, out, "--crf")[1]
    # The CAMs are still those of the first run, and known as such.
    assert "holds CAMs made with other settings (scales)" in refusal(
        weights, photos, out, "--save", "cam", "--scales", "1"
    )


def test_a_record_of_weights_alone_is_understood(tmp_path, photos, program, weights):
    """As the masks' first version of this program left it."""
    out = tmp_path / "out"
    assert program(photos, out)[0] == 0
    digest = json.loads((out / ".cosa.json").read_text())["mask"]["weights_sha256"]
    (out / ".cosa.json").write_text(json.dumps({"weights_sha256": digest}))
    assert "5 skipped" in program(photos, out)[1]
    for content in ('{"weights_sha256": "several"}', "{", "[1]", '{"mask": 3}'):
        (out / ".cosa.json").write_text(content)
        assert "masks made with other weights" in refusal(weights, photos, out)


def test_an_image_that_fails_while_overwriting_keeps_the_folder_marked(
    tmp_path, photos, program, weights
):
    out = tmp_path / "out"
    (photos / "never.jpg").write_text("no image, and never was")
    assert program(photos, out)[0] == 1
    assert program(photos, out, "--scales", "1", "--overwrite")[0] == 1
    assert "5 skipped" in program(photos, out, "--scales", "1")[1]
    (photos / "0.png").write_text("no image any more")
    assert program(photos, out, "--scales", "2", "--overwrite")[0] == 1
    # 0.png is still the mask of scale 1.
    assert "other weights" in refusal(weights, photos, out, "--scales", "2")
