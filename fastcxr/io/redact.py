"""What is written down tells no place of this machine: of an absolute path only its last part stays.

The folders above may name a patient, a ward or a person; what lies below the data folder is the user's own naming.
"""

import os
import re
import shlex
from pathlib import Path, PurePath

FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?[\\/](?:[^\s'\"\\/:]+[\\/])+")  # of an absolute path in a sentence
START = re.compile(r"(?<![\w.~/*+\])-])/(?=\w)")  # of an absolute path in a sentence, and of no pattern
END = re.compile(r"[\s,;:()'\"]|$")


def redact_command(command: str | None) -> str | None:
    """A command line as run.json holds it: each absolute path, also behind a `=`, becomes its last part."""
    return command and shlex.join(map(_redact_argument, shlex.split(command)))


def hide_folders(text: str) -> str:
    """A sentence in which each absolute path is its last part."""
    return FOLDERS.sub("", text)


def _redact_argument(argument: str) -> str:
    name, separator, value = argument.partition("=")
    if _is_absolute_path(argument):
        return Path(argument).name
    return f"{name}={_redact_argument(value)}" if separator else argument  # --filter=path=/data/1.png has two signs


def _is_absolute_path(argument: str) -> bool:
    """Whether this is an absolute path, and no pattern that merely begins with a slash."""
    path = Path(argument)
    return path.is_absolute() and (os.path.exists(path) or (path.parent != Path(path.anchor) and path.parent.exists()))


def hide_in_text(text: str) -> str:
    """A message as run.json holds it: of each absolute path that it names only the last part stays."""
    shown, done = [], 0
    for start in (match.start() for match in START.finditer(text)):
        if start >= done and (end := _find_end(text, start)):
            shown += [text[done:start], PurePath(text[start:end]).name]
            done = end
    return "".join([*shown, text[done:]])


def _find_end(text: str, start: int) -> int | None:
    """Where the path that begins here ends: the longest one that exists, else one without spaces in a real folder."""
    ends = [match.start() for match in END.finditer(text, start + 1)]
    if end := next((end for end in reversed(ends) if os.path.lexists(text[start:end].rstrip("."))), None):
        return end - (text[end - 1] == ".")
    parts = PurePath(text[start : ends[0]]).parts
    return ends[0] if len(parts) > 2 and os.path.isdir("/" + parts[1]) else None
