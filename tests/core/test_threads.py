import pytest

from cosa.core import threads
from cosa.core.threads import core_count


@pytest.mark.parametrize("quota, expected", [
    (None, 6), ("max 100000", 6), ("250000 100000", 3), ("50000 100000", 1), ("900000 100000", 6),
])
def test_cores_are_those_that_the_process_may_use(monkeypatch, tmp_path, quota, expected):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(6)),
                        raising=False)
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    assert core_count() == expected


@pytest.mark.parametrize("cores, expected", [(4, 4), (None, 1)])
def test_cores_where_the_system_knows_no_affinity(monkeypatch, tmp_path, cores, expected):
    monkeypatch.delattr(threads.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "none")
    assert core_count() == expected
