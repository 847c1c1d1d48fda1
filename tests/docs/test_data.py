"""What docs/data.md tells a user to write is accepted."""

import re
from pathlib import Path

import pytest

from cosa.config import load_config
from cosa.config.sections import DataConfig
from cosa.data.labels import read_labels
from cosa.data.labels.label_fields import SEPARATORS
from tests.helpers.pages import page

PAGE = page("docs/data.md")


def test_keys_in_the_tables_exist():
    keys = set(re.findall(r"`(\w+): ", PAGE.text)) | set(re.findall(r"`data\.(\w+)`", PAGE.text))
    assert {"labels", "masks", "val_images", "label_separator"} <= keys
    assert keys - {"cats"} <= set(DataConfig.__dataclass_fields__)


@pytest.mark.parametrize("number, kind", [(0, "labels between ';'"), (1, "one column per class")])
def test_tables_are_read(tmp_path, number, kind):
    Path(tmp_path, "x.csv").write_text(PAGE.blocks("csv")[number])
    table = read_labels(tmp_path / "x.csv")
    assert [(row.image, row.labels) for row in table.rows] == [
        ("cats/a.jpg", ["cat", "sofa"]), ("b.png", ["dog"])]
    assert kind in table.kind


def test_separators_are_those_of_the_option():
    listed = re.search(r"label_separator`, which is one of (.*?) \(", PAGE.text, re.DOTALL)
    assert set(re.findall("`([^`]+)`", listed[1])) == set(SEPARATORS)
    for separator in SEPARATORS:
        load_config(None, [f"data.label_separator='{separator}'"])
