"""Text stays text, whatever is in it."""

from pathlib import PurePosixPath

import pytest
from PIL import Image

from cosa.core.text import shown
from cosa.pages.markup import Markup, element, joined, link, name, page, picture, table, text
from tests.helpers.reports import EVIL, assert_inert, parsed


def test_an_element():
    made = element("p", "a<b", 3, None, [element("b", "&"), " "], class_="x\"y", data_k="'")
    assert made == '<p class="x&quot;y" data-k="&#x27;">a&lt;b3<b>&amp;</b> </p>'
    assert element("img", src=Markup("data:image/webp;base64,AA=="), alt="") == (
        '<img src="data:image/webp;base64,AA==" alt="">')
    assert element("p", class_=None) == "<p></p>"


def test_text_is_visible_and_of_one_line():
    assert text("a\nb\x1b\u202e") == "a\\nb\\x1b\\u202e"
    assert text("\udcff") == "\\udcff"
    assert len(text("x" * 100_000)) == 400
    assert joined("<", Markup("<b>"), None, ["&"]) == "&lt;<b>&amp;"


@pytest.mark.parametrize("evil", [*EVIL, "</title><script>", "</style><b>"])
def test_names_are_no_markup_wherever_they_are(evil):
    made = page(evil, "p { color: red; }", element("p", evil, class_=evil), name(evil),
                table((evil,), [(evil, evil)]))
    assert_inert(made)
    _, attributes, told = parsed(made)
    assert told.count(shown(evil)) == 6  # title, p, bdi, and three cells
    assert ("p", "class", shown(evil)) in attributes


@pytest.mark.parametrize("path, address", [
    ("javascript:alert(1).png", "javascript%3Aalert%281%29.png"),
    ("a b/ü\"'.png", "a%20b/%C3%BC%22%27.png"),
    ("50%#?&.png", "50%25%23%3F%26.png"),
    ("\udcff.png", "%FF.png"),
])
def test_addresses_lead_to_files_alone(path, address):
    assert link(PurePosixPath(path)) == address


def test_a_picture_is_in_the_page():
    made = picture(Image.new("RGBA", (40, 20), (255, 0, 0, 255)))
    assert made.startswith("data:image/webp;base64,") and isinstance(made, Markup)
