"""Optional outputs: an error skips the output with a warning, an interrupt does not."""

import logging

import pytest

from fastcxr.errors import ModelError
from fastcxr.io.optional_outputs import skip_on_error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotImplementedError("no such pooling\nsecond line"), "NotImplementedError: no such pooling"),
        (MemoryError(), "MemoryError"),
        (FileNotFoundError(2, "No such file", "/home/some/a.png"), "FileNotFoundError: No such file"),
        (RuntimeError("in '/home/some_body/a.ttf': 1/2/3, n/a"), "RuntimeError: in 'a.ttf': 1/2/3, n/a"),
        (ModelError("no feature map", "Give --method occlusion", path="/a/b"), "no feature map"),
    ],
)
def test_a_warning_has_the_output_and_the_reason_without_folders(caplog, error, reason):
    with caplog.at_level(logging.DEBUG, "fastcxr"), skip_on_error("figure roc") as attempt:
        raise error
    assert attempt.reason == reason
    warning, trace = caplog.records
    assert warning.levelname == "WARNING" and warning.getMessage() == f"figure roc left out: {reason}"
    assert trace.levelname == "DEBUG" and trace.exc_info[1] is error, "an error of fastcxr itself must be traceable"


def test_without_an_error_there_is_no_reason_and_no_warning(caplog):
    with skip_on_error("figure roc") as attempt:
        pass
    assert not attempt.reason and not caplog.records


@pytest.mark.parametrize("error_class", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_caught(error_class):
    with pytest.raises(error_class), skip_on_error("figure roc"):
        raise error_class
