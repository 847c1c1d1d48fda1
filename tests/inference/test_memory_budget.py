"""Memory that threads share."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cosa.inference import memory_budget as room
from cosa.inference.memory_budget import Room, memory_size


def test_no_more_is_taken_than_there_is_and_what_is_larger_goes_alone():
    space, lock = Room(10), threading.Lock()
    held, most, together = [], 0, 0

    def work(amount):
        nonlocal most, together
        with space.take(amount):
            with lock:
                held.append(amount)
                together = max(together, len(held))
                if max(held) > 10:
                    assert len(held) == 1
                else:
                    most = max(most, sum(held))
            time.sleep(0.002)
            with lock:
                held.remove(amount)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, 8 * [4, 3, 99, 3, 10, 4]))
    assert together > 1 and 4 < most <= 10


def test_room_is_given_back_after_an_error():
    space = Room(1)
    with pytest.raises(KeyError), space.take(5):
        raise KeyError
    done = threading.Event()

    def work():
        with space.take(5):
            done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(5)


def test_the_memory_of_a_container_is_its_limit(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(room, "_CONTROL_GROUP", limit)
    whole = memory_size()
    assert whole > 2**28
    limit.write_text("max\n")
    assert memory_size() == whole
    limit.write_text("1048576\n")
    assert memory_size() == 2**20


@pytest.mark.skipif(room.resource is None, reason="Windows has no such limits")
def test_the_memory_of_a_process_is_its_limit(monkeypatch):
    whole = memory_size()
    monkeypatch.setattr(room.resource, "getrlimit", lambda _: (2**20, 2**30))
    assert memory_size() == 2**20
    monkeypatch.setattr(room.resource, "getrlimit", lambda _: (room.resource.RLIM_INFINITY,) * 2)
    assert memory_size() >= whole
