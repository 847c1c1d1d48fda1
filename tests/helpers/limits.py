"""Limits of the system that tests set for as long as a program runs."""

from contextlib import contextmanager

import pytest


@contextmanager
def largest_file(size):
    """No file may grow beyond so many bytes: writing stops in the middle, as on a full disk.

    Not longer than the program runs: pytest's own log may be larger.
    """
    resource = pytest.importorskip("resource")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
