"""Names of the data are text on the card, whatever is in them."""

import re
import string

import pytest
import yaml

from cosa.checkpoint import load
from cosa.config import Config
from cosa.core.hub import parse_model
from cosa.hub.card import card, escaped
from cosa.hub.run import Trained
from tests.helpers.hostile import CLASS, CLASS_SHOWN
from tests.helpers.inference import write_weights

HOSTILE = [
    CLASS, "---\nlicense: mit\n---", "a | b", "<script>alert(1)</script>", "![x](http://e.org/x)",
    "[x](javascript:alert(1))", "http://e.org", "www.e.org", "joe@e.org", "&lt;b&gt;", "`code`",
    "**bold**", "$x^2$", "# head", "\\", "\\|", "]]>", "<!-- -->", "- item", "1. one", "~~s~~",
    "é日本", "x" * 500, "{{ jinja }}", "<https://e.org>",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = write_weights(tmp_path_factory.mktemp("card") / "a.pt", classes=HOSTILE)
    trained = Trained(
        network=load(path), config=Config(), iterations=None, split="val", evaluations=0,
        panels=[], scores={"miou": 0.5, "iou": dict.fromkeys(HOSTILE, 0.25), "images": 3},
    )
    return card(parse_model("joe/a_b"), trained, "mit")


def bare(cell):
    """The characters that Markdown shows for escaped text."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell)


def test_every_mark_is_escaped():
    assert bare(escaped(string.punctuation)) == string.punctuation
    assert escaped(string.punctuation) == "".join(f"\\{c}" for c in string.punctuation)
    assert escaped("cat 2") == "cat 2" and bare(escaped(CLASS)) == CLASS_SHOWN


def test_a_class_stays_in_its_cell(text):
    rows = [re.split(r"(?<!\\)(?:\\\\)*\|", line)[1:-1] for line in text.splitlines()
            if re.match(r"\| \d+ \|", line)]
    assert [len(row) for row in rows] == [4] * (1 + len(HOSTILE))
    assert bare(rows[1][1].strip()) == CLASS_SHOWN
    assert all(row[3].strip() == "25.0" for row in rows[1:])


def test_the_metadata_is_its_own(text):
    _, metadata, rest = text.split("---\n", 2)
    assert yaml.safe_load(metadata) == {
        "license": "mit", "library_name": "cosa", "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "weakly-supervised", "image-level-labels", "cosa"]}
    assert "\n---" not in rest and rest.isprintable() is False and "\x1b" not in rest


def test_as_a_reader_of_markdown_sees_it(text):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("gfm-like", {"linkify": False})
    tokens = markdown.parse(text.split("---\n", 2)[2])
    inline = [child for token in tokens for child in token.children or ()]
    links = {child.attrs["href"] for child in inline if child.type == "link_open"}
    assert links == {"https://arxiv.org/abs/2402.17891"}
    assert not {"image", "html_inline", "em_open", "s_open"} & {child.type for child in inline}
    assert not [token for token in tokens if token.type == "html_block"]
    cells = [token.content for token in tokens if token.type == "inline"]
    shown = ["".join(child.content for child in token.children or ()) for token in tokens
             if token.type == "inline"]
    for name in HOSTILE[1:-3]:
        if "\n" not in name and len(name) < 80:
            assert name in shown, (name, cells)
