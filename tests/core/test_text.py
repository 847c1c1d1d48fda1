import pytest

from cosa.core.text import LINE, NAME, aligned, shown, visible


@pytest.mark.parametrize("text", ["", "a/b c.png", "  two  spaces", "ä 日本 ½ – \\n", "e\u0301"])
def test_usual_text_stays_as_it_is(text):
    assert visible(text) == shown(text) == text


@pytest.mark.parametrize("character, escape", [
    ("\0", r"\x00"), ("\t", r"\t"), ("\r", r"\r"), ("\x1b", r"\x1b"), ("\x7f", r"\x7f"),
    ("\x9b", r"\x9b"), ("\x85", r"\x85"), ("\xad", r"\xad"), ("\u200b", r"\u200b"),
    ("\u2028", r"\u2028"), ("\u202e", r"\u202e"), ("\u2066", r"\u2066"), ("\ufeff", r"\ufeff"),
    ("\udcff", r"\udcff"), ("\U000e0041", r"\U000e0041"),
])
def test_what_cannot_be_seen_is_escaped(character, escape):
    assert visible(f"a{character}\nb") == f"a{escape}\nb"
    assert shown(f"a{character}\nb") == rf"a{escape}\nb"


def test_long_text_keeps_its_ends():
    text = shown("start " + "\x1b" * 100_000 + " end")
    assert len(text) == LINE and text.startswith(r"start \x1b") and text.endswith(r"\x1b end")
    assert text.count(" [...] ") == 1 and shown(text) == text
    assert shown("x" * LINE) == "x" * LINE
    assert shown("abcdefghijklmno", 13) == "abc [...] mno"
    assert shown("x" * 5000, None) == "x" * 5000
    assert shown(ValueError("a\nb")) == r"a\nb"


def test_cells_stay_in_their_columns():
    table = aligned([["class", "IoU"], ["日本", " 12.3"], ["e\u0301", "    -"], ["a\nb", "100.0"]])
    assert table.split("\n") == [
        "class    IoU",
        "日本    12.3",
        "e\u0301          -",
        r"a\nb   100.0",
    ]
    name, _ = aligned([["x" * 5000, "IoU"]]).rsplit("  ", 1)
    assert len(name) == NAME
