import pytest

from cosa.core import terminal
from cosa.core.terminal import progress_bar


@pytest.mark.parametrize("terminal_there, seconds", [(True, 0.1), (False, 30.0)])
def test_log_files_are_not_flooded(monkeypatch, terminal_there, seconds):
    monkeypatch.setattr(terminal.sys.stderr, "isatty", lambda: terminal_there, raising=False)
    with progress_bar(total=3, desc="x") as bar:
        assert bar.mininterval == seconds
