"""Images that are never held: the same masks as in one piece, in bounded memory, in their place."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import cosa
from cosa import cam as cams
from cosa.core.errors import UserError
from cosa.data import images, layout, raster
from cosa.data.reading import Reading
from cosa.inference import geotiff, huge, outputs, pipeline
from cosa.inference.finished import find_finished, read_back
from cosa.inference.jobs import CannotGoOn, plan
from cosa.inference.kept_maps import InMemory, OnDisk
from cosa.inference.pipeline import segment_files
from cosa.inference.settings import CrfSettings, Settings
from tests.helpers.deep_files import tiff
from tests.helpers.inference import files, refusal, run_main
from tests.helpers.limits import largest_file
from tests.helpers.rasters import PLACE, smooth, write_raster
from tests.helpers.tiny import ROOT

rasterio = pytest.importorskip("rasterio")

SLIDE = Settings(32, (1.0, 0.5, 1.5), True, "slide", window=48, stride=30, max_size=1000)
ROWS = ("mask", "index", "geotiff")


@pytest.fixture(scope="module")
def network(weights):
    return cosa.load(weights)


@pytest.fixture
def not_held(monkeypatch):
    """Call it, and images of more than so many pixels go by windows."""
    def limit(pixels=1000):
        monkeypatch.setattr(images, "MAX_PIXELS", pixels)
    return limit


@pytest.fixture
def in_strips(monkeypatch):
    """Everything that large images are divided for is divided here."""
    monkeypatch.setattr(cams, "MAX_VALUES", 3000)
    monkeypatch.setattr(raster, "AT_ONCE", 2000)
    monkeypatch.setattr(layout, "STRIP", 1500)
    monkeypatch.setattr(geotiff, "TILE", 16)


def segmented(network, path, out, settings=SLIDE, save=ROWS, **options):
    jobs = plan(str(path), out, save)
    (outcome,) = segment_files(network, jobs, settings, save=jobs.save, batch_size=5, **options)
    assert not list(out.rglob("*.tmp"))
    return outcome, jobs[0].results


def content(path):
    with Image.open(path) as image:
        return np.array(image)


CASES = {
    "colours": (smooth((93, 141)), {}, {}, None),
    "shrunk": (smooth((193, 141)), {}, {"max_size": 77}, None),
    "a single pass": (smooth((93, 141)), {}, {"scales": (1.0,), "flip": False}, None),
    "few classes": (smooth((93, 141)), {}, {"min_class_score": 0.5}, None),
    "labels": (smooth((93, 141)), {}, {}, lambda _: [1, 3]),
    "no label": (smooth((93, 141)), {}, {}, lambda _: []),
    "deep": (smooth((93, 141)).astype(np.uint16) * 4, {"photometric": 2},
             {"reading": Reading((0, 1020), (3, 3, 1))}, None),
    "fractions": (smooth((93, 141))[..., :1] / np.float32(300), {"photometric": 1}, {}, None),
    "a column": (smooth((300, 7)), {}, {}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_masks_are_bit_by_bit_those_of_the_image_in_one_piece(
    tmp_path, network, not_held, in_strips, case
):
    values, tags, options, labels_of = CASES[case]
    path = tmp_path / "in/a.tif"
    path.parent.mkdir()
    path.write_bytes(tiff(values, **{"photometric": 2, "rows": 7, **tags}))
    settings = Settings(**(vars(SLIDE) | options))
    held, one = segmented(network, path, tmp_path / "one", settings, labels_of=labels_of,
                          details=True)
    not_held()
    outcome, results = segmented(network, path, tmp_path / "rows", settings, labels_of=labels_of,
                                 details=True)
    assert outcome.error is None and outcome.size == held.size == values.shape[:2]
    assert outcome.found == held.found and outcome.mask is None
    expected = content(one["mask"])
    assert case == "no label" or len(np.unique(expected)) > 1
    for kind in ROWS:
        assert np.array_equal(content(results[kind]), expected), kind
        assert np.array_equal(content(one[kind]), expected), kind
    for kind, mode in (("mask", "P"), ("index", "L"), ("geotiff", "P")):
        with Image.open(results[kind]) as image, Image.open(one[kind]) as whole:
            assert image.mode == whole.mode == mode
            assert image.getpalette() == whole.getpalette()


def test_a_mask_lies_where_its_image_lies(tmp_path, network, not_held):
    for held in (True, False):
        path = write_raster(tmp_path / f"{held}/a.tif", smooth((40, 60)), **PLACE)
        if not held:
            not_held()
        _, results = segmented(network, path, tmp_path / f"out{held}")
        with rasterio.open(results["geotiff"]) as mask, rasterio.open(path) as image:
            assert mask.crs == image.crs and mask.transform == image.transform
            assert mask.nodata is None and mask.dtypes == ("uint8",)
            assert mask.profile["tiled"] and mask.profile["compress"] == "deflate"
            assert mask.colormap(1)[1] == (*network.palette[1], 255)
        assert files(tmp_path / f"out{held}") == ["a.index.png", "a.png", "a.tif"]


def test_points_on_the_ground_and_pixels_that_are_points_are_kept(tmp_path, network, not_held):
    points = [rasterio.control.GroundControlPoint(row, col, x, y)
              for row, col, x, y in ((0, 0, 9, 48), (0, 9, 9.1, 48), (9, 0, 9, 47.9))]
    path = write_raster(tmp_path / "in/a.tif", smooth((40, 60)), gcps=points, crs="EPSG:4326")
    not_held()
    _, results = segmented(network, path, tmp_path / "out")
    with rasterio.open(results["geotiff"]) as mask:
        found, crs = mask.gcps
        assert crs.to_epsg() == 4326
        assert [(p.row, p.col, p.x, p.y) for p in found] == [
            (p.row, p.col, p.x, p.y) for p in points]
    path = write_raster(tmp_path / "in/b.tif", smooth((40, 60)), **PLACE)
    with rasterio.open(path, "r+") as file:
        file.update_tags(AREA_OR_POINT="Point")
    with rasterio.open(path) as file:
        place = file.transform
    _, results = segmented(network, path, tmp_path / "out")
    with rasterio.open(results["geotiff"]) as mask:
        assert mask.tags()["AREA_OR_POINT"] == "Point" and mask.transform == place


@pytest.mark.parametrize("held", [True, False])
def test_pixels_without_data_have_none_in_the_mask(tmp_path, network, not_held, in_strips, held):
    values = smooth((40, 60))
    values[10:25, 20:] = 7
    path = write_raster(tmp_path / "in/a.tif", values, nodata=7)
    if not held:
        not_held()
    _, results = segmented(network, path, tmp_path / "out")
    empty = (values == 7).all(-1)
    mask = content(results["mask"])
    with rasterio.open(results["geotiff"]) as file:
        assert file.nodata == 255
        assert np.array_equal(file.read(1), np.where(empty, 255, mask))
    assert mask.max() <= 3, "PNG files hold classes alone"


def test_what_needs_the_whole_image_is_refused(tmp_path, network, not_held):
    path = write_raster(tmp_path / "in/a.tif", smooth((40, 60)))
    not_held()
    crf = CrfSettings(2, (1.0, 1.0), (4.0, 20.0, 10.0))
    over = f"{path} has over 0 megapixels"
    for settings, save, options, message in (
        (Settings(32), ("mask",), {}, "; segment it by windows, --mode slide, or shrink it"),
        (Settings(**(vars(SLIDE) | {"crf": crf})), ("mask",), {}, ", and --crf needs all of it"),
        (SLIDE, ("mask", "overlay"), {}, ", and --save overlay needs all of it: leave that out "
                                         "(--save mask, index, geotiff do not)"),
        (SLIDE, ("cam",), {}, ", and --save cam needs"),
        (SLIDE, ("mask",), {"keep_masks": True}, ", and --evaluate needs all of it"),
    ):
        outcome, results = segmented(network, path, tmp_path / "out", settings, save, **options)
        assert str(outcome.error).startswith(over + message)
        assert not any(result.exists() for result in results.values())
    Image.fromarray(smooth((40, 60))).save(tmp_path / "in/b.png")
    outcome, _ = segmented(network, tmp_path / "in/b.png", tmp_path / "out")
    assert "no TIFF file, which alone are read in parts; rewrite it in tiles" in str(outcome.error)


def test_too_little_memory_for_the_image_is_enough_for_its_windows(tmp_path, network, monkeypatch):
    path = write_raster(tmp_path / "in/a.tif", smooth((40, 60)))
    monkeypatch.setattr(pipeline, "memory_size", lambda: 2 * 8 * 40 * 60 - 1)
    outcome, results = segmented(network, path, tmp_path / "out")
    assert outcome.error is None and content(results["mask"]).shape == (40, 60)
    outcome, _ = segmented(network, path, tmp_path / "out", Settings(32))
    assert "is 60x40 pixels, too many for this machine's memory; segment it by windows" in str(
        outcome.error)


def test_a_damaged_image_fails_alone(tmp_path, network, not_held):
    for name in "abc":
        path = write_raster(tmp_path / f"in/{name}.tif", smooth((60, 80)), compress="DEFLATE",
                            blockysize=4)
        if name == "b":
            data = bytearray(path.read_bytes())
            data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
            path.write_bytes(data)
    not_held()
    jobs = plan(str(tmp_path / "in"), tmp_path / "out")
    outcomes = list(segment_files(network, jobs, SLIDE))
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert f"{path.parent / 'b.tif'} cannot be read as an image" in str(outcomes[1].error)
    assert files(tmp_path / "out") == ["a.png", "c.png"]


def test_a_full_disk_ends_the_run_and_leaves_nothing(tmp_path, network, not_held, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    path = write_raster(tmp_path / "in/a.tif", noise)
    not_held()
    small = Settings(**(vars(SLIDE) | {"scales": (1.0,), "flip": False, "max_size": 64}))
    for save in ("mask", "geotiff"):
        with largest_file(150):
            outcome, _ = segmented(network, path, tmp_path / "out", small, (save,))
        assert "the result of" in str(outcome.error) and "cannot be written" in str(outcome.error)
        assert files(tmp_path / "out") == []
    monkeypatch.setattr(outputs, "HOPELESS", {27})  # EFBIG, as if the disk were full
    with largest_file(150), pytest.raises(CannotGoOn, match="make room"):
        segmented(network, path, tmp_path / "out", small, ("mask",))
    with largest_file(20), pytest.raises(CannotGoOn, match="make room"):  # for the maps
        segmented(network, path, tmp_path / "out", SLIDE, ("mask",))
    assert files(tmp_path / "out") == []


def test_masks_are_read_back_before_they_count(tmp_path, network, monkeypatch):
    path = write_raster(tmp_path / "in/a.tif", smooth((40, 60)))
    # As on a disk that is full when the file is closed: what is missing there, nobody says.
    monkeypatch.setattr(geotiff.GeoTiffRows, "_flush", lambda rows: setattr(rows, "_sum", 1))
    outcome, _ = segmented(network, path, tmp_path / "out", save=("geotiff",))
    assert "what was written cannot be read again" in str(outcome.error)
    assert files(tmp_path / "out") == []


def test_a_run_goes_on_where_it_left_off(tmp_path, weights, not_held, capfd):
    path = write_raster(tmp_path / "in/a.tif", smooth((40, 60)), **PLACE)
    not_held()
    options = ("--mode", "slide", "--window", 48, "--save", "mask,geotiff")
    assert run_main(weights, tmp_path / "in", tmp_path / "out", *options) == 0
    assert run_main(weights, tmp_path / "in", tmp_path / "out", *options, "--json",
                    tmp_path / "s.json") == 0
    assert "0 done" in capfd.readouterr().out.splitlines()[-1]
    (image,) = json.loads((tmp_path / "s.json").read_text())["images"]
    assert image["skipped"] and image["size"] == [60, 40] and "classes" not in image
    jobs = plan(str(tmp_path / "in"), tmp_path / "out", ("mask", "geotiff"))
    assert find_finished(jobs) == [True]
    (outcome,) = read_back(jobs, 3)
    assert outcome.size == (40, 60) and outcome.mask is None and outcome.found is None
    write_raster(path, smooth((41, 60)))
    assert find_finished(jobs) == [False], "the image has another size now"


def test_what_may_not_be_meant_is_told_once(tmp_path, weights, not_held, capfd):
    for name in "ab":
        write_raster(tmp_path / f"in/{name}.tif", smooth((80, 120)), **PLACE)
    not_held()
    options = ("--mode", "slide", "--window", 48, "--max-size", 32)
    assert run_main(weights, tmp_path / "in", tmp_path / "out", *options) == 0
    err = capfd.readouterr().err
    a = tmp_path / "in/a.tif"
    assert err.count(f"{a} is seen at 32x24 of its 120x80 pixels: --max-size N is the") == 1
    assert err.count(f"{a} has a georeference, which PNG files do not keep: --save geotiff") == 1
    assert "b.tif" not in err


def test_georeferenced_masks_need_the_package(tmp_path, weights, monkeypatch):
    write_raster(tmp_path / "in/a.tif", smooth((40, 60)))
    monkeypatch.setitem(sys.modules, "rasterio", None)
    message = refusal(weights, tmp_path / "in", tmp_path / "out", "--save", "geotiff")
    assert message == "--save geotiff needs a package: pip install rasterio"


def test_a_mask_full_of_classes_has_no_value_left_for_gaps(tmp_path):
    path = write_raster(tmp_path / "a.tif", smooth((4, 6)), nodata=7)
    with pytest.raises(UserError, match="holds at most 254 classes"):
        with huge.mask_file("geotiff", tmp_path / "b.tif", path, (4, 6), 256 * [(0, 0, 0)]):
            pass
    assert not (tmp_path / "b.tif").exists()


@pytest.mark.parametrize("flip", [True, False])
def test_maps_in_a_file_are_those_in_memory(tmp_path, flip):
    rows = [torch.rand(6, n, 5) for n in (1, 4, 2)]
    memory, disk = InMemory(), OnDisk(tmp_path)
    for part in rows:
        memory.append(part)
        disk.append(part)
    expected, found = memory.channels([4, 0]), disk.channels([4, 0])
    assert found.shape == tuple(expected.shape) == (2, 7, 5)
    assert torch.equal(found[:, :], expected)
    assert torch.equal(found[:, 2:6], expected[:, 2:6])
    assert not list(tmp_path.iterdir()), "it has no name"
    disk.close()


PEAK = """
import os, sys
os.environ["GDAL_CACHEMAX"] = "4"
import infer
from cosa import cam
from cosa.core.memory import PEAK_RESIDENT, resident
from cosa.data import images, layout, raster
images.MAX_PIXELS, raster.AT_ONCE, layout.STRIP, cam.MAX_VALUES = 1000, 2**18, 2**17, 2**17
small, large, *options = sys.argv[1:]
peaks = []
for path in (small, large):
    assert infer.main([path, "--output", path + ".out", *options]) == 0
    peaks.append(resident(PEAK_RESIDENT))
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_image(tmp_path, weights):
    """What an image of 9 megapixels adds to the peak of one of 1 MP, as wide as it."""
    paths = [tmp_path / "small.tif", tmp_path / "large.tif"]
    for path, height in zip(paths, (1000, 9000), strict=True):
        write_raster(path, smooth((height, 1000), cell=50), tiled=True, compress="DEFLATE",
                     blockysize=128, blockxsize=128, photometric="RGB")
    command = [sys.executable, "-c", PEAK, *paths, "--weights", weights, "--mode", "slide",
               "--window", 64, "--stride", 64, "--scales", 1, "--no-flip", "--batch-size", 32,
               "--max-size", 9000, "--save", "mask,geotiff", "--device", "cpu"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    # In one piece it adds 126 MB: the pixels take 27 MB as 8-bit RGB, 108 MB as floats.
    assert int(done.stdout.splitlines()[-1]) < 25e6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_320_megapixels_in_less_than_two_gigabytes(tmp_path, weights):
    path, tile = tmp_path / "in/a.tif", smooth((512, 20_000), cell=97)
    path.parent.mkdir()
    with rasterio.open(
        path, "w", driver="GTiff", width=20_000, height=16_000, count=3, dtype="uint8", tiled=True,
        compress="DEFLATE", photometric="RGB", crs=PLACE["crs"],
        transform=rasterio.Affine(*PLACE["transform"]),
    ) as file:
        for top in range(0, 16_000, 512):
            rows = np.roll(tile, 61 * top, axis=1)[: 16_000 - top]
            file.write(np.moveaxis(rows, -1, 0),
                       window=rasterio.windows.Window(0, top, 20_000, len(rows)))
    code = """
import sys, infer
from cosa.core.memory import PEAK_RESIDENT, resident
assert infer.main(sys.argv[1:]) == 0
print(resident(PEAK_RESIDENT))
"""
    command = [sys.executable, "-c", code, path, "--weights", weights, "--output", tmp_path / "out",
               "--mode", "slide", "--window", 128, "--stride", 128, "--no-flip", "--batch-size", 16,
               "--max-size", 20_000, "--save", "mask,geotiff", "--device", "cpu"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 2e9
    with rasterio.open(tmp_path / "out/a.tif") as mask:
        assert mask.shape == (16_000, 20_000) and mask.crs.to_epsg() == 32632
        assert len(np.unique(mask.read(1, window=((8000, 9000), (0, 20_000))))) > 1


def test_masks_too_large_to_be_held_are_not_scored(tmp_path, weights, not_held, capfd):
    write_raster(tmp_path / "in/a.tif", smooth((40, 60)))
    write_raster(tmp_path / "in/b.tif", smooth((20, 30)))
    (tmp_path / "truth").mkdir()
    for name, size in (("a", (60, 40)), ("b", (30, 20))):
        Image.new("L", size, 1).save(tmp_path / f"truth/{name}.png")
    not_held()
    options = ("--mode", "slide", "--window", 48)
    assert run_main(weights, tmp_path / "in", tmp_path / "out", *options) == 0
    capfd.readouterr()
    code = run_main(weights, tmp_path / "in", tmp_path / "out", *options, "--evaluate",
                    tmp_path / "truth")
    out, err = capfd.readouterr()
    assert code == 1 and "1 images scored" in out
    assert f"not scored: {tmp_path / 'in/a.tif'} is not scored: its mask is too large" in err
