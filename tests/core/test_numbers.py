import json
import math

from cosa.core.numbers import percent, without_nan


def test_numbers_that_json_lacks_become_none_at_any_depth():
    scores = {"a": math.nan, "b": [1.5, math.inf, {"c": (-math.inf, 2)}], "d": "nan", "e": True}
    cleaned = without_nan(scores)
    assert cleaned == {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "nan", "e": True}
    assert json.loads(json.dumps(cleaned, allow_nan=False)) == cleaned


def test_shares_in_percent_are_aligned():
    assert [percent(share) for share in (0.1234, 1.0, 0.0, None, math.nan)] == [
        " 12.3", "100.0", "  0.0", "    -", "    -"]
