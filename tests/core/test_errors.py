from cosa.core.errors import did_you_mean


def test_the_nearest_name_is_offered_or_none():
    assert did_you_mean("trian", ["val", "train"]) == "; did you mean 'train'?"
    assert did_you_mean("xyz", {"val": 1, "train": 2}) == ""
    assert did_you_mean("xyz", [], cutoff=0.0) == ""
    assert did_you_mean("vax", ["train", "val"], cutoff=0.0) == "; did you mean 'val'?"
    assert did_you_mean("vax", ["train", "val"], cutoff=0.9) == ""
