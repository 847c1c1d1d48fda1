import signal

import pytest

from cosa import terminal
from cosa.terminal import StopRequest, progress_bar


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_remembered_and_the_handlers_are_put_back(number):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert not stop.asked() and stop.signal == 0
        signal.raise_signal(number)
        assert stop.asked() and stop.signal == number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_echo_is_no_second_signal(clock, monkeypatch):
    with StopRequest() as stop:
        raised = []
        signal.raise_signal(signal.SIGTERM)
        clock[0] += 0.9
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGTERM, "the first one counts"
        clock[0] += 0.2
        original = signal.raise_signal
        monkeypatch.setattr(terminal.signal, "raise_signal", raised.append)
        original(signal.SIGINT)
        assert raised == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


@pytest.mark.parametrize("terminal_there, seconds", [(True, 0.1), (False, 30.0)])
def test_log_files_are_not_flooded(monkeypatch, terminal_there, seconds):
    monkeypatch.setattr(terminal.sys.stderr, "isatty", lambda: terminal_there, raising=False)
    with progress_bar(total=3, desc="x") as bar:
        assert bar.mininterval == seconds
