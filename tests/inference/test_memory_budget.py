"""Memory that threads share."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cosa.core import memory
from cosa.core.errors import UserError
from cosa.inference.memory_budget import Room
from cosa.inference.settings import Settings
from cosa.inference.task import check_memory


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


def test_squares_that_cannot_fit_are_refused_before_the_first(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device=None: 2**30)
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match="2 float32 images of 16384 pixels a side take at least "
                                        "6.0 GiB.*lower --batch-size, --size or --scales"):
        check_memory(Settings(size=4096, scales=(1.0, 4.0)), 2, cpu)
    check_memory(Settings(size=4096, scales=(1.0, 0.5)), 2, cpu)
    check_memory(Settings(size=4096, scales=(4.0,), mode="slide"), 2, cpu)
