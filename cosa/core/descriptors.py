"""How many files and connections this process may hold open."""

from __future__ import annotations

try:
    import resource
except ImportError:  # not on Windows, which has no such limit
    resource = None

FEWEST = 64
"""What every program needs: Python's and PyTorch's own, and files that threads read and write."""


def allowed_files(wanted: int) -> int:
    """How many files this process may hold open, once its own limit is raised to what is wanted.

    The system's limit for the user stays.
    """
    if resource is None:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft
