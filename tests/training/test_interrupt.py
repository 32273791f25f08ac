"""A signal is a wish: at once where nothing is under way, after the batch where one is."""

import os
import signal

import pytest

from fastcxr.training import interrupt
from fastcxr.training.interrupt import Interrupted, defer_interrupts, handle_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_where_nothing_is_under_way_it_stops_at_once(number, code):
    with pytest.raises(Interrupted) as caught, handle_signals(print, "resume"):
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == code
    assert not interrupt.interrupt_requested()


def test_a_batch_that_is_under_way_ends_first():
    def work():
        with defer_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append(interrupt.interrupt_requested())
        interrupt.raise_interrupted()

    seen = []
    with pytest.raises(Interrupted), handle_signals(print, "resume"):
        work()
    assert seen == [True]


def test_nothing_that_catches_every_exception_catches_it():
    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:  # noqa: BLE001  what a library may do
            pytest.fail("caught")

    with pytest.raises(Interrupted), handle_signals(print, "resume"):
        work()


def test_afterwards_the_signals_are_what_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with handle_signals(print, "resume"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("way", ["a second one", "no end of the batch"])
def test_a_second_wish_or_a_batch_without_end_leaves_the_process(monkeypatch, way):
    left = []

    class Left(BaseException):
        pass

    def leave(code):
        left.append(code)
        raise Left

    said = []
    monkeypatch.setattr(os, "_exit", leave if way == "a second one" else left.append)
    monkeypatch.setattr(interrupt, "GRACE_SECONDS", 9 if way == "a second one" else 0.05)
    with handle_signals(said.append, "fastcxr resume runs/x"), defer_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        if way == "a second one":
            with pytest.raises(Left):
                os.kill(os.getpid(), signal.SIGINT)
        while not left:
            pass
    assert left == [130]
    assert said == ["left in the middle of a batch; the last state is intact. Go on with: fastcxr resume runs/x"]
