from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest

from cosa.core.declared import Misfit, Within, check, shown


class Entry(TypedDict):
    id: int
    outline: list[list[float]] | str


class Optional(Entry, total=False):
    note: str | None


@dataclass
class State:
    done: int
    best: float = 0.0


@pytest.mark.parametrize("kind, value", [
    (Any, object()), (int, 3), (list[int], [10**400]), (float, 3), (float, 0.5),
    (bool, True), (str, "é"), (None, None),
    (list[float], []), (list[float], [1, 2.5]), (tuple[int, ...], [1]),
    (tuple[int, str], (1, "a")), (dict[str, Any], OrderedDict(a=1)), (dict, {1: 2}),
    (dict[int, list[str]], {1: ["a"]}), (Annotated[int, Within(0, 9)], 9), (Entry, {
        "id": 1, "outline": [[1, 2.0]], "other": 3}), (Optional, {"id": 1, "outline": "x"}),
    (State, {"done": 1}),
])
def test_what_fits(kind, value):
    check(kind, value)


@pytest.mark.parametrize("kind, value, told", [
    (int, True, "its content must be of type int, not True"),
    (int, 1.0, "of type int"), (bool, 1, "of type bool, not 1"),
    (float, float("nan"), "a finite number, not nan"), (float, 10**400, "a finite number"),
    (str, "a\0", "text without NUL"), (str, "\ud800", "that UTF-8 can hold, not '\\ud800'"),
    (list[int], (1,), "a list, not (1,)"),
    (list[float], [1, float("inf")], "[1] must be a finite number, not inf"),
    (list[float], [1, float("nan"), 2], "[1] must be a finite number, not nan"),
    (list[float], [1, 10**400], "[1] must be a finite number"),
    (list[int], [1, True], "[1] must be of type int, not True"),
    (list[Annotated[int, Within(0, 9)]], [3, -1], "[1] must be of type int, 0 to 9, not -1"),
    (tuple[int, str], [1], "a list of 2, not [1]"), (tuple[int, str], [1, 2], "[1] must be"),
    (dict[str, int], {"a": "b"}, "a must be of type int, not 'b'"),
    (dict[str, int], {1: 2}, "[1] must be of type str, not 1"),
    (list[Entry], [{"id": 1, "outline": []}, {"id": 2}], "[1].outline is missing"),
    (list[Entry], [{"id": 1, "outline": [[1], [2, "x"]]}], "[0].outline[1][1] must be"),
    (Entry, {"id": 1, "outline": 3}, "outline must be a list or of type str, not 3"),
    (Optional, {"id": 1, "outline": "x", "note": 3}, "note must be of type str or null, not 3"),
    (State, {"best": 1}, "done is missing"), (State, {"done": None}, "done must be"),
    (list[str], type("L", (list,), {})(), "a list"),
])
def test_what_does_not_fit_is_named_with_its_place(kind, value, told):
    with pytest.raises(Misfit) as caught:
        check(kind, value)
    assert told in str(caught.value)


def test_values_are_shown_in_short():
    deep = []
    for _ in range(500):
        deep = [deep] * 9
    assert len(shown(deep)) <= 400 and "thousands" in shown(10**5000)
    assert len(shown("x" * 10**6)) < 100 and len(shown(10**4000)) < 100
    assert shown(None) == "null" and "\n" not in shown("a\nb")
