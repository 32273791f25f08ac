"""Everything that can go wrong by somebody's doing: what it got, what it wanted, what to do, in one line.

Each class carries the exit code of the command line (sysexits: 65 data, 66 no input, ...); each error may carry
a code `E101` that documentation and scripts can rely on.
"""

from pathlib import Path


class FastcxrError(Exception):
    """A mistake that a person can repair: `what` is wrong, `fix` says how to mend it."""

    exit_code = 1

    def __init__(self, problem: str, fix: str, *, path: str | Path | None = None, code: str | None = None):
        self.problem, self.fix, self.path, self.code = problem, fix, None if path is None else str(path), code
        super().__init__(str(self))

    def __str__(self) -> str:
        # repr would double every backslash; only control characters may not reach a terminal
        path = None if self.path is None else "".join(c if c.isprintable() else repr(c)[1:-1] for c in self.path)
        prefix = " ".join(part for part in (self.code and f"FCX-{self.code}", path) if part)
        return f"{prefix}: {self.problem}. {self.fix}" if prefix else f"{self.problem}. {self.fix}"

    def __reduce__(self):  # errors cross process borders when images are read in parallel
        return _rebuild_error, (type(self), self.problem, self.fix, self.path, self.code)


def _rebuild_error(
    error_class: type["FastcxrError"], problem: str, fix: str, path: str | None, code: str | None
) -> "FastcxrError":
    return error_class(problem, fix, path=path, code=code)


class RecipeError(FastcxrError, ValueError):
    """A choice that cannot be: an unknown name, a number out of range, two wishes that exclude each other."""

    exit_code = 64


class DataError(FastcxrError, ValueError):
    """A table, a folder or a label that cannot be used as it is."""

    exit_code = 65


class ImageError(DataError):
    """One image file that cannot be read as a chest radiograph."""


class ModelError(DataError):
    """A file that is no model of fastcxr, or not the model that it says it is."""


class InputMissingError(FastcxrError, FileNotFoundError):
    """A file or folder that was named and is not there, or holds no images."""

    exit_code = 66


class WeightsError(FastcxrError):
    """Pretrained weights that are out of reach or do not fit the backbone."""

    exit_code = 69


class OutputError(FastcxrError, OSError):
    """A place that cannot be written to, or that already holds something."""

    exit_code = 73


class StorageError(OutputError):
    """A disk that is full or fails while something is written to it."""

    exit_code = 74


class BusyError(OutputError):
    """A folder that another process is writing into."""

    exit_code = 75


class BadImagesError(DataError):
    """Every unreadable image of a cohort, each with its reason."""

    def __init__(self, errors: list[ImageError]):
        self.errors = errors
        super().__init__(
            f"{len(errors)} of the images cannot be read", "Repair or remove them, or leave them out with --skip-bad"
        )

    def __str__(self) -> str:
        return "\n".join([*map(str, getattr(self, "errors", [])), super().__str__()])

    def __reduce__(self):
        return BadImagesError, (self.errors,)


class TrainingError(FastcxrError):
    """Training that went nowhere: a loss that is no number."""

    exit_code = 65
