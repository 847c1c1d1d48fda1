"""Regions of masks and their outlines, against hand-made ones, pixels and pycocotools."""

import numpy as np
import pytest

from cosa.data.masks.outlines import compressed, enclosed, fill_polygon, region, run_lengths
from cosa.export.annotations import find_regions, from_arrays, to_arrays
from cosa.export.annotations.polygons import bridged, run_lengths_of, simplified
from cosa.export.annotations.tracing import connected, outlines


def masks(count=40, most=14):
    """Random masks: holes, parts within holes, pixels that touch at a corner, single pixels."""
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = rng.integers(1, most, 2)
        mask = rng.choice(3, (height, width), p=(0.2, 0.7, 0.1)).astype(np.uint8)
        yield np.kron(mask, np.ones((3, 3), np.uint8)) if number % 3 == 0 else mask


def filled(rings, shape):
    """What is within an odd number of the outlines."""
    inside = np.zeros(shape, dtype=bool)
    for ring in rings:
        inside ^= fill_polygon(ring, shape[::-1])
    return inside


def flooded(mask):
    """The parts by another way: each is filled from its first pixel."""
    parts, count = np.zeros(mask.shape, int), 0
    for start in np.ndindex(mask.shape):
        if mask[start] and not parts[start]:
            count += 1
            parts[start], left = count, [start]
            while left:
                row, column = left.pop()
                for r, c in ((row - 1, column), (row + 1, column), (row, column - 1),
                             (row, column + 1)):
                    if (0 <= r < mask.shape[0] and 0 <= c < mask.shape[1] and not parts[r, c]
                            and mask[r, c] == mask[start]):
                        parts[r, c] = count
                        left.append((r, c))
    return parts


def test_parts_are_neighbours_of_one_class():
    for mask in masks():
        parts, starts, of_runs = connected(mask)
        np.testing.assert_array_equal(parts, flooded(mask))
        lengths = np.diff([*starts, mask.size])
        np.testing.assert_array_equal(np.repeat(of_runs, lengths), parts.ravel())


def test_outlines_by_hand():
    parts = np.array([[1, 1, 1, 0],
                      [1, 0, 1, 0],
                      [1, 1, 0, 2]], dtype=np.int32)
    first, second = outlines(parts)
    # The pixel in the middle touches what is outside at a corner: it is no hole.
    assert [ring.tolist() for ring in first] == [
        [[0, 0], [3, 0], [3, 2], [2, 2], [2, 1], [1, 1], [1, 2], [2, 2], [2, 3], [0, 3]]]
    assert [ring.tolist() for ring in second] == [[[3, 2], [4, 2], [4, 3], [3, 3]]]
    parts[2, 2] = 1
    outer, hole = outlines(parts)[0]
    assert outer.tolist() == [[0, 0], [3, 0], [3, 3], [0, 3]] and enclosed(outer) == 9
    assert sorted(hole.tolist()) == [[1, 1], [1, 2], [2, 1], [2, 2]] and enclosed(hole) == -1
    assert outlines(np.zeros((3, 2), np.int32)) == []


def test_what_the_outlines_enclose_is_the_very_mask():
    holes = 0
    for mask in masks():
        again = np.zeros_like(mask)
        for found in find_regions(mask, np.ones(mask.shape)):
            inside = filled(found.rings, mask.shape)
            assert found.area == inside.sum() and not again[inside].any()
            assert enclosed(found.rings[0]) > 0
            assert all(enclosed(hole) < 0 for hole in found.rings[1:])
            rows, columns = np.nonzero(inside)
            assert found.box == (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
            # The same as a single outline, and as run lengths.
            tied = bridged(found.rings[0], found.rings[1:])
            np.testing.assert_array_equal(fill_polygon(tied, mask.shape[::-1]), inside)
            counts = run_lengths_of(found.rings, mask.shape[::-1])
            assert (counts[1:] > 0).all()
            np.testing.assert_array_equal(
                region({"counts": compressed(counts)}, mask.shape[::-1]), inside)
            again[inside] = found.label
            holes += len(found.rings) - 1
        np.testing.assert_array_equal(again, mask)
    assert holes > 30


def test_pycocotools_sees_the_same():
    tools = pytest.importorskip("pycocotools.mask")
    for mask in masks(20):
        height, width = mask.shape
        for found in find_regions(mask, np.ones(mask.shape)):
            inside = filled(found.rings, mask.shape)
            expected = tools.encode(np.asfortranarray(inside.astype(np.uint8)))
            assert compressed(run_lengths_of(found.rings, (width, height))) == (
                expected["counts"].decode())
            polygon = [bridged(found.rings[0], found.rings[1:]).ravel().tolist()]
            if len(found.rings) == 1:
                drawn = tools.decode(tools.frPyObjects(polygon, height, width))[..., 0]
                np.testing.assert_array_equal(drawn.astype(bool), inside)


def test_compressed_run_lengths_are_read_back():
    for counts in ([0, 5], [3, 1, 100_000, 2, 7, 2**31 - 1, 1], [16, 15, 31, 32, 1, 900, 1]):
        np.testing.assert_array_equal(run_lengths(compressed(np.array(counts))), counts)


def far(point, ring):
    """The distance of a point from a closed outline."""
    starts, ends = ring.astype(float), np.roll(ring, -1, axis=0).astype(float)
    along = ends - starts
    share = ((point - starts) * along).sum(1) / np.square(along).sum(1).clip(1e-9)
    return np.hypot(*(point - starts - share.clip(0, 1)[:, None] * along).T).min()


def test_simplified_outlines_stay_near():
    rows, columns = np.mgrid[:60, :80]
    disk = (np.hypot(rows - 30, columns - 40) < 25).astype(np.uint8)
    ring = find_regions(disk, np.ones(disk.shape))[0].rings[0]
    assert simplified(ring, 0) is ring
    before = len(ring)
    for tolerance in (0.5, 1, 2, 5):
        left = simplified(ring, tolerance)
        assert 3 <= len(left) <= before
        assert {*map(tuple, left)} <= {*map(tuple, ring)}
        assert max(far(point, left) for point in ring) <= tolerance + 1e-9
        inside = fill_polygon(left, (80, 60))
        assert (inside & disk).sum() > 0.9 * disk.sum()
        before = len(left)
    assert len(simplified(ring, 1)) < len(ring) / 2
    # What would vanish stays as it is.
    speck = np.array([[4, 4], [5, 4], [5, 5], [4, 5]])
    np.testing.assert_array_equal(simplified(speck, 1000), speck)
    assert len(simplified(ring, 1000)) == len(ring)


def test_scores_are_mean_probabilities():
    mask = np.array([[1, 1, 0, 2], [0, 1, 0, 2], [1, 0, 0, 0]], dtype=np.uint8)
    probability = np.arange(12).reshape(3, 4) / 16
    found = find_regions(mask, probability.astype(np.float16))
    assert [(r.label, r.area, r.score * 16) for r in found] == [
        (1, 3, (0 + 1 + 5) / 3), (2, 2, (3 + 7) / 2), (1, 1, 8)]
    assert find_regions(np.zeros((3, 4), np.uint8), probability) == []


def test_regions_are_kept_in_arrays():
    for mask in [*masks(12), np.zeros((5, 4), np.uint8)]:
        probability = np.random.default_rng(1).random(mask.shape)
        regions = find_regions(mask, probability)
        arrays = to_arrays(regions, mask.shape)
        again, size = from_arrays(arrays)
        assert size == mask.shape[::-1] and len(again) == len(regions)
        for one, other in zip(again, regions, strict=True):
            assert one.label == other.label and one.score == pytest.approx(other.score)
            for ring, same in zip(one.rings, other.rings, strict=True):
                np.testing.assert_array_equal(ring, same)
        for damaged in ("lengths", "rings", "classes"):
            cut = arrays | {damaged: arrays[damaged][:-1]}
            if len(arrays[damaged]):
                with pytest.raises(ValueError):
                    from_arrays(cut)
