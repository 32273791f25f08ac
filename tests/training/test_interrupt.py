"""Signals stop the process at once, or after the batch if the interrupt is deferred."""

import os
import signal

import pytest

from fastcxr.training import interrupt
from fastcxr.training.interrupt import Interrupted, defer_interrupts, handle_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_raises_at_once_if_it_is_not_deferred(number, code):
    with pytest.raises(Interrupted) as caught, handle_signals(print, "resume"):
        os.kill(os.getpid(), number)
    assert caught.value.exit_code == code
    assert not interrupt.get_signal_number()


def test_a_deferred_signal_does_not_interrupt_the_batch():
    def work():
        with defer_interrupts():
            os.kill(os.getpid(), signal.SIGTERM)
            requests.append(interrupt.get_signal_number())
        raise Interrupted(interrupt.get_signal_number())

    requests = []
    with pytest.raises(Interrupted), handle_signals(print, "resume"):
        work()
    assert requests == [signal.SIGTERM]


def test_except_exception_does_not_catch_an_interrupt():
    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:  # noqa: BLE001  what a library may do
            pytest.fail("caught")

    with pytest.raises(Interrupted), handle_signals(print, "resume"):
        work()


def test_the_previous_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with handle_signals(print, "resume"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("cause", ["second signal", "long batch"])
def test_a_second_signal_or_a_long_batch_ends_the_process(monkeypatch, cause):
    exit_codes = []

    class Exited(BaseException):
        pass

    def exit_process(code):
        exit_codes.append(code)
        raise Exited

    lines = []
    monkeypatch.setattr(os, "_exit", exit_process if cause == "second signal" else exit_codes.append)
    monkeypatch.setattr(interrupt, "GRACE_SECONDS", 9 if cause == "second signal" else 0.05)
    with handle_signals(lines.append, "fastcxr resume runs/x"), defer_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        if cause == "second signal":
            with pytest.raises(Exited):
                os.kill(os.getpid(), signal.SIGINT)
        while not exit_codes:
            pass
    assert exit_codes == [130]
    assert lines == ["terminated mid-batch; the last checkpoint is intact. Resume with: fastcxr resume runs/x"]


def test_a_second_signal_of_torchrun_is_ignored(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("ended mid-batch"))
    with handle_signals(print, "resume", is_repeated=True), defer_interrupts():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.get_signal_number() == signal.SIGTERM
