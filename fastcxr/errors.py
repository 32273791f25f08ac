"""Exceptions for errors that a user can correct. Each is one line: the problem, with the value found, and the fix.

Each class carries the exit code of the command line (sysexits: 65 data, 66 no input, ...). An error may carry
a code such as `E101`, which documentation and scripts can rely on.
"""

from pathlib import Path
from types import NoneType


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


class ArgumentTypeError(FastcxrError, TypeError):
    """An argument of a Python function that has the wrong type."""

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


class PackageError(FastcxrError, ImportError):
    """A Python package that is not installed."""

    exit_code = 69


class TrackingError(FastcxrError):
    """An experiment tracker that does not answer, or rejects the data."""

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


class HubError(FastcxrError, OSError):
    """The Hugging Face hub rejects a request."""

    exit_code = 69


class HubUnreachableError(HubError):
    """The Hugging Face hub cannot be reached, or has an error."""


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


# where a value of the expected type comes from, by the name of the argument
ARGUMENT_FIXES = {
    "data": "Pass a folder, a CSV, a DataFrame or a packed file, or a list of them",
    "loaders": "Pass the result of make_loaders(manifest, recipe), or fastai DataLoaders",
    "learner": "Pass the result of make_learner(loaders, recipe)",
    "manifest": "Pass the result of read_manifest(data)",
    "model": "Pass a Learner or the result of load_model(folder)",
    "path": "Pass the path of a file",
    "predictions": "Pass the result of predict(model, images), or of read_predictions(path)",
    "recipe": "Pass a Recipe, such as Recipe('resnet50', epochs=5)",
    "run": "Pass the path of a run folder",
    "recipes": "Pass a dict of variant names to recipes",
    "runs": "Pass a list of run folders",
    "source": "Pass the result of read_manifest(data), or a folder or a CSV",
    "training": "Pass the result of train(learner, recipe), or leave it out",
}


def require_type(name: str, value: object, *types: type, fix: str | None = None) -> None:
    """Raise ArgumentTypeError unless the value of this argument has one of the types; `str` and `Path` are paths."""
    if not isinstance(value, types):
        names = ["a path" if one is Path else one.__name__ for one in types if one not in (str, NoneType)]
        raise make_type_error(name, value, " or ".join(names), fix)


def make_type_error(name: str, value: object, expected: str, fix: str | None = None) -> ArgumentTypeError:
    """Return the error for an argument of another type; by default the fix is that of the argument's name."""
    problem = f"`{name}` is of type {type(value).__name__}, expected {expected}"
    return ArgumentTypeError(problem, fix or ARGUMENT_FIXES.get(name, f"Pass the path of a {name}"))
