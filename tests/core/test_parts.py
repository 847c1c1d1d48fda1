from cosa.core.parts import parts


def test_parts_are_all_of_it_in_order():
    assert list(parts(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(parts(2, 9)) == [slice(0, 2)] and list(parts(0, 9)) == []
    assert list(parts(2, 0)) == [slice(0, 1), slice(1, 2)], "a part holds one at least"
