import threading

import pytest

from cosa.core import threads as core_threads
from cosa.core.errors import UserError
from cosa.core.threads import core_count, in_threads


@pytest.mark.parametrize("quota, expected", [
    (None, 6), ("max 100000", 6), ("250000 100000", 3), ("50000 100000", 1), ("900000 100000", 6),
])
def test_cores_are_those_that_the_process_may_use(monkeypatch, tmp_path, quota, expected):
    monkeypatch.setattr(core_threads.os, "sched_getaffinity", lambda _: set(range(6)),
                        raising=False)
    monkeypatch.setattr(core_threads, "_QUOTA", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert core_count() == expected


@pytest.mark.parametrize("cores, expected", [(4, 4), (None, 1)])
def test_cores_where_the_system_knows_no_affinity(monkeypatch, tmp_path, cores, expected):
    monkeypatch.delattr(core_threads.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(core_threads.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(core_threads, "_QUOTA", tmp_path / "none")
    assert core_count() == expected


def test_reading_in_threads_keeps_the_order_and_reads_ahead():
    begun, all_begun = [], threading.Event()

    def read(item):
        begun.append(item)
        if len(begun) == 3:
            all_begun.set()
        assert item > 2 or all_begun.wait(10), "one after the other"
        return 2 * item

    assert in_threads(read, range(500)) == list(range(0, 1000, 2))
    assert sorted(begun) == list(range(500))


def test_an_error_in_a_thread_ends_the_reading():
    def read(item):
        if item == 5:
            raise UserError(f"{item} is broken")
        begun.append(item)
        return item

    begun = []
    with pytest.raises(UserError, match="5 is broken"):
        in_threads(read, range(10_000))
    assert len(begun) < 1000, "the rest is dropped"
