import numpy as np
import pytest
import torch
from PIL import Image

from cosa.core.errors import UserError
from cosa.distill.photographs import load_photographs

CPU = torch.device("cpu")


def test_one_in_twenty_is_held_out_by_sorted_name(tmp_path, pictures, monkeypatch):
    for number in range(41):
        pictures(number, (8, 8)).save(tmp_path / f"{number:02}.png")
    # A folder that is given twice counts once, whatever it is called.
    monkeypatch.chdir(tmp_path)
    found = load_photographs([str(tmp_path), ".", f"../{tmp_path.name}"], 8, CPU)
    assert found.pixels.shape == (41, 3, 8, 8) and found.pixels.dtype == torch.uint8
    assert found.held_out.tolist() == [0, 20, 40]
    assert found.learnt.tolist() == [n for n in range(41) if n % 20]


def test_they_are_squashed_and_their_aspects_known(tmp_path, pictures):
    wide, high = pictures(1, (60, 20)), pictures(2, (30, 45))
    wide.save(tmp_path / "a.png")
    high.save(tmp_path / "b.png")
    found = load_photographs([str(tmp_path)], 16, CPU)
    assert found.aspects.tolist() == pytest.approx([3, 2 / 3])
    for image, pixels in zip((wide, high), found.pixels, strict=True):
        square = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR))
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), square)


def test_large_jpeg_files_are_decoded_small_and_look_the_same(tmp_path, pictures):
    image = pictures(3, (800, 600))
    for name in "ab":
        image.save(tmp_path / f"{name}.jpg", quality=95)
    found = load_photographs([str(tmp_path)], 32, CPU)
    assert found.aspects.tolist() == pytest.approx([4 / 3] * 2)
    square = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), dtype=float)
    assert abs(found.pixels[0].permute(1, 2, 0).numpy() - square).mean() < 5


def test_whole_ones_are_averaged_down(tmp_path, pictures):
    for number in range(3):
        pictures(number).save(tmp_path / f"{number}.png")
    found = load_photographs([str(tmp_path)], 8, CPU)
    images = found.whole(torch.tensor([2, 0]), 4)
    assert images.shape == (2, 3, 4, 4)
    by_hand = found.pixels[2, 1, 2:4, 4:6].float().mean() / 255
    assert float(images[0, 1, 1, 2]) == pytest.approx(float(by_hand))


def test_what_cannot_be_read_is_left_out_with_a_warning_each(tmp_path, capsys, pictures):
    for number in range(3):
        pictures(number).save(tmp_path / f"{number}.png")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:90])
    found = load_photographs([str(tmp_path)], 8, CPU)
    # By sorted name: 0, 1, 2, cut, empty.
    assert (found.held_out.tolist(), found.learnt.tolist()) == ([0], [1, 2])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("warning: left out: ") for line in lines)
    assert "cut.png" in lines[0] and "empty.jpg is empty" in lines[1]


def test_two_photographs_are_needed(tmp_path, pictures):
    pictures(0).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="1 of 1 photographs can be read: give at least two"):
        load_photographs([str(tmp_path)], 8, CPU)
    with pytest.raises(UserError, match="is no folder"):
        load_photographs([str(tmp_path / "a.png")], 8, CPU)
    with pytest.raises(UserError, match="'' is no folder"):
        load_photographs([""], 8, CPU)
