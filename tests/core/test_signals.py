import signal
import threading

import pytest

from cosa.core import signals
from cosa.core.signals import Interrupts, StopRequest


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
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
        monkeypatch.setattr(signals.signal, "raise_signal", raised.append)
        original(signal.SIGINT)
        assert raised == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def handlers():
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_interrupts_and_no_other_does(number, capfd):
    before = handlers()
    with Interrupts() as stop:
        with stop.raising():
            pass
        with pytest.raises(KeyboardInterrupt), stop.raising():
            signal.raise_signal(number)
        for other in (signal.SIGTERM, signal.SIGINT, number):
            signal.raise_signal(other)
        assert stop.number == number and stop.exit_code == 128 + number
    assert handlers() == before and capfd.readouterr().err == ""


def test_a_signal_waits_for_a_place_where_it_does_no_harm():
    done = []
    with Interrupts() as stop, pytest.raises(KeyboardInterrupt):
        for item in stop.awaiting(iter(range(9))):
            if item == 2:
                signal.raise_signal(signal.SIGINT)
            done.append(item)
    assert done == [0, 1, 2]
    with Interrupts() as stop:
        assert list(stop.awaiting(iter("ab"))) == ["a", "b"]
        assert not stop.number and stop.exit_code == 130


def test_an_impatient_person_is_told_now_and_then(clock, capfd):
    with Interrupts():
        for seconds in (0, 0.5, 0.6, 0.5, 0.6):
            clock[0] += seconds
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == 2 * "\nstopping: what has begun is finished first\n"


def test_signals_that_are_ignored_stay_so():
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop.number
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, former)


def test_in_other_threads_signals_are_left_alone():
    before = handlers()

    def run():
        with Interrupts() as stop, stop.raising():
            seen.append(handlers())

    seen = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
