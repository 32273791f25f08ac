"""Exceptions for errors that a user can correct. Each is one line: the problem, with the value found, and the fix.

Each class carries the exit code of the command line (sysexits: 65 data, 66 no input, ...). An error may carry
a code such as `E101`, which documentation and scripts can rely on.
"""

from pathlib import Path


class FastcxrError(Exception):
    """An error that a user can correct: `problem` states what is wrong, `fix` what to do."""

    exit_code = 1

    def __init__(self, problem: str, fix: str, *, path: str | Path | None = None, code: str | None = None):
        self.problem, self.fix, self.path, self.code = problem, fix, None if path is None else str(path), code
        super().__init__(str(self))

    def __str__(self) -> str:
        # repr would double every backslash; only control characters must not reach a terminal
        path = None if self.path is None else "".join(c if c.isprintable() else repr(c)[1:-1] for c in self.path)
        prefix = " ".join(part for part in (self.code and f"FCX-{self.code}", path) if part)
        return f"{prefix}: {self.problem}. {self.fix}" if prefix else f"{self.problem}. {self.fix}"

    def __reduce__(self):  # worker processes that read images send their errors as pickles
        return _rebuild_error, (type(self), self.problem, self.fix, self.path, self.code)


def _rebuild_error(
    error_class: type["FastcxrError"], problem: str, fix: str, path: str | None, code: str | None
) -> "FastcxrError":
    return error_class(problem, fix, path=path, code=code)


class RecipeError(FastcxrError, ValueError):
    """An invalid option: an unknown name, a number out of range, or two options that exclude each other."""

    exit_code = 64


class DataError(FastcxrError, ValueError):
    """An invalid table, folder or label."""

    exit_code = 65


class ImageError(DataError):
    """An image file that cannot be read as a chest radiograph."""


class ModelError(DataError):
    """A file that is not a fastcxr model, or does not match its checksum or description."""


class InputMissingError(FastcxrError, FileNotFoundError):
    """A file or folder that does not exist, or holds no images."""

    exit_code = 66


class WeightsError(FastcxrError):
    """Pretrained weights that are not available or do not fit the backbone."""

    exit_code = 69


class OutputError(FastcxrError, OSError):
    """An output path that is not writable, or exists already."""

    exit_code = 73


class StorageError(OutputError):
    """A disk that is full or fails during writing."""

    exit_code = 74


class BusyError(OutputError):
    """An output folder that another process writes into."""

    exit_code = 75


class BadImagesError(DataError):
    """All unreadable images of a dataset, each with its error."""

    def __init__(self, errors: list[ImageError]):
        self.errors = errors
        fix = "Repair or remove them, or leave them out with `skip_bad=True`"
        super().__init__(f"{len(errors)} of the images cannot be read", fix)

    def __str__(self) -> str:
        return "\n".join([*map(str, getattr(self, "errors", [])), super().__str__()])

    def __reduce__(self):
        return BadImagesError, (self.errors,)


class TrainingError(FastcxrError):
    """A training that cannot continue, such as a NaN or infinite loss."""

    exit_code = 65


class DeviceError(FastcxrError):
    """A compute device whose memory is too small for one image, or that was lost."""

    exit_code = 71
