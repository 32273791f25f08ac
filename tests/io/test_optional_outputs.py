"""A figure that cannot be made is left out with its reason; a wish to stop is no such reason."""

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
        (ModelError("no map of places", "Give --method occlusion", path="/a/b"), "no map of places"),
    ],
)
def test_a_warning_names_the_figure_and_the_reason_without_folders(caplog, error, reason):
    with caplog.at_level(logging.DEBUG, "fastcxr"), skip_on_error("figure roc") as attempt:
        raise error
    assert attempt.reason == reason
    warning, trace = caplog.records
    assert warning.levelname == "WARNING" and warning.getMessage() == f"figure roc left out: {reason}"
    assert trace.levelname == "DEBUG" and trace.exc_info[1] is error, "an error of our own must be found"


def test_what_can_be_made_has_no_reason_and_nothing_is_said(caplog):
    with skip_on_error("figure roc") as attempt:
        pass
    assert not attempt.reason and not caplog.records


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_wish_to_stop_passes(kind):
    with pytest.raises(kind), skip_on_error("figure roc"):
        raise kind
