"""Check that the paths that a user names exist, before any of them is read."""

import re
from collections.abc import Sequence
from pathlib import Path

from fastcxr.errors import InputMissingError
from fastcxr.io.tables import format_names, suggest_path

MAX_NAMED_PATHS = 3
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(.+)")  # not C:/ of Windows
DOWNLOAD_COMMANDS = {
    "hf": "hf download {rest}",
    "s3": "aws s3 sync {url} FOLDER",
    "gs": "gcloud storage cp -r {url} FOLDER",
}


def reject_missing_paths(paths: Sequence[str | Path], fix: str, *, log_names: bool = True) -> None:
    """Raise InputMissingError if one of these paths does not exist; a link without a target exists.

    The error names up to three paths, or with `log_names=False` the position of the first, from 1.
    """
    missing = {number: path for number, path in enumerate(paths, 1) if _is_missing(Path(path).expanduser())}
    if not missing:
        return
    for path in missing.values() if log_names else ():
        _reject_url(str(path))
    if log_names and len(missing) == 1:
        path = Path(*missing.values())
        problem = f"no such file or folder{suggest_path(path.expanduser())}"
        raise InputMissingError(problem, fix, path=path, code="E001")
    names = format_names(map(str, missing.values()), MAX_NAMED_PATHS) if log_names else f"first number {min(missing)}"
    problem = f"{len(missing):,} of {len(paths):,} paths do not exist: {names}"
    raise InputMissingError(problem, fix, code="E001")


def _reject_url(path: str) -> None:
    match = URL.match(path)
    if match:
        scheme, rest = match.groups()
        url = f"{scheme}://{rest}"  # a Path has one slash
        command = DOWNLOAD_COMMANDS.get(scheme.casefold(), "curl -LO {url}").format(url=url, rest=rest)
        fix = f"Download it first, e.g. with `{command}`, and name the file or folder"
        raise InputMissingError(f"{url} is a URL, expected a file or folder on this machine", fix, code="E040")


def _is_missing(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):  # the reader of the file states the reason
        return False
    return False
