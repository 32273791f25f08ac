"""Removal of the folders of absolute paths from recorded commands and messages.

These folders may name a patient, a ward or a user.
"""

import os
import re
import shlex
from pathlib import Path, PurePath

FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\s'\"\\/:]+[\\/])+")  # of an absolute path in a sentence
START = re.compile(r"(?<![\w.~/*+\])-])/(?=\w)")  # of an absolute path in a sentence, not of a pattern
END = re.compile(r"[\s,;:()'\"]|$")


def redact_command(command: str | None) -> str | None:
    """Replace each absolute path in a command line, also after a `=`, by its last part."""
    return command and shlex.join(map(_redact_argument, shlex.split(command)))


def hide_folders(text: str) -> str:
    """Remove the folders of all absolute paths in a sentence; fast, but it stops at a space."""
    return FOLDERS.sub("", text)


def _redact_argument(argument: str) -> str:
    name, separator, value = argument.partition("=")
    if _is_absolute_path(argument):
        return Path(argument).name
    return f"{name}={_redact_argument(value)}" if separator else argument  # --filter=path=/data/1.png has two signs


def _is_absolute_path(argument: str) -> bool:
    """Return whether this is an absolute path, not a pattern that starts with a slash."""
    path = Path(argument)
    return path.is_absolute() and (os.path.exists(path) or (path.parent != Path(path.anchor) and path.parent.exists()))


def hide_in_text(text: str) -> str:
    """Replace each absolute path in a message, also one with spaces, by its last part."""
    shown, done = [], 0
    for start in (match.start() for match in START.finditer(text)):
        if start >= done and (end := _find_end(text, start)):
            shown += [text[done:start], PurePath(text[start:end]).name]
            done = end
    return "".join([*shown, text[done:]])


def _find_end(text: str, start: int) -> int | None:
    """Return the end of the path at `start`: the longest existing path, else one without spaces in a real folder."""
    ends = [match.start() for match in END.finditer(text, start + 1)]
    if end := next((end for end in reversed(ends) if os.path.lexists(text[start:end].rstrip("."))), None):
        return end - (text[end - 1] == ".")
    parts = PurePath(text[start : ends[0]]).parts
    return ends[0] if len(parts) > 2 and os.path.isdir("/" + parts[1]) else None
