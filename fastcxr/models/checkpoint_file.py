"""Reading of weights files (safetensors, and PyTorch checkpoints with weights_only) without running code in them."""

import argparse
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError  # raised by torch (weights_only) for a file with objects other than tensors
from typing import Any, cast
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fastcxr.errors import InputMissingError, WeightsError
from fastcxr.io.hub_names import WEIGHTS_FILES, is_hub_name
from fastcxr.models.encoders import ENCODERS
from fastcxr.models.hub_download import find_model_dir

MIN_SAFE_TORCH = "2.10"  # earlier versions can run code in spite of weights_only: CVE-2025-32434, CVE-2026-24747
# raised by safetensors, zipfile and torch for damaged files; any other exception is a bug
DAMAGED_FILE_ERRORS = (
    SafetensorError, BadZipFile, OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, ArithmeticError, MemoryError, ImportError, struct.error,
)  # fmt: skip
ZIP_SIGNATURE = b"PK\x03\x04"
PICKLE_SIGNATURE = b"\x80"  # of all pickle protocols that torch.save has used
GIT_LFS_SIGNATURE = b"version https://git-lfs"
SNIFFED_BYTES = 512
TEXT_CONTROLS = str.maketrans("", "", "\ufeff\t\n\r\f")  # control characters of text files
INVALID = "\ufffd"  # in place of bytes that are no text
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
REFUSED_CLASS = re.compile(r"GLOBAL ([\w.]{1,80})")  # in the messages of torch's unpickler


def find_weights_file(path: str | Path) -> Path:
    """Return the path of a weights file, of hf://owner/name that of its network in the hub's cache.

    Raise InputMissingError if it does not exist or is a folder.
    """
    path = find_model_dir(path) / WEIGHTS_FILES[0] if is_hub_name(path) else Path(path)
    if path.is_dir():
        raise InputMissingError("this is a folder", _make_folder_fix(path), path=path)
    if not path.is_file():
        fix = "Pass `weights='pretrained'`, `weights='none'`, or a .safetensors or .pth file"
        if str(path) in ENCODERS:
            fix = f"Pass {path} as the backbone: it is the name of a chest encoder with its weights"
        raise InputMissingError("weights file not found", fix, path=path)
    return path


def _make_folder_fix(folder: Path) -> str:
    """Name the weights file in a folder, as of a download from the hub: model.safetensors, or the only one."""
    files = sorted(file for file in folder.glob("*") if file.suffix in WEIGHTS_SUFFIXES)
    chosen = [file for file in files if file.name == "model.safetensors"] or files
    return f"Pass the weights file in it{f', {chosen[0]}' if len(chosen) == 1 else ''}"


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """Read a weights file, without running code in it: tensors by name, and in a checkpoint other entries beside them.

    Raise WeightsError if the file is damaged, or contains other objects than tensors, plain containers, numpy numbers
    and argparse.Namespace.
    """
    path = find_weights_file(path)
    if path.suffix == ".pkl":
        problem = "a fastai export is a pickle, which can run code when it is loaded"
        fix = "If you trust it, pass the result of torch.save(load_learner(FILE).model.state_dict(), 'weights.pth')"
        raise WeightsError(problem, fix, path=path, code="E206")
    try:
        _reject_text(path)
        return load_file(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    except UnpicklingError as error:
        found = REFUSED_CLASS.search(str(error))
        name = f" ({found[1]})" if found else ""
        problem = f"the file contains other objects than tensors{name}, which can run code when they are loaded"
        fix = "If you trust it, save only its state dict, with torch.save(model.state_dict(), FILE) or safetensors"
        raise WeightsError(problem, fix, path=path, code="E206") from error
    except DAMAGED_FILE_ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        problem = f"no weights can be read from the file ({reason})"
        raise WeightsError(problem, "Copy or download the file again", path=path, code="E204") from error


def _read_checkpoint(path: Path) -> dict[str, Any]:
    if torch.__version__ < MIN_SAFE_TORCH:
        problem = f"torch {torch.__version__} can run code in this file; torch >= {MIN_SAFE_TORCH} is needed"
        fix = f"Run `pip install 'torch>={MIN_SAFE_TORCH}'`, or pass the weights as .safetensors"
        raise WeightsError(problem, fix, path=path, code="E206")
    _validate_archive(path)
    # torch also warns about damaged files, which raise errors here
    with warnings.catch_warnings(), torch.serialization.safe_globals(_list_allowed_globals()):
        warnings.simplefilter("ignore")
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        problem = f"the file contains a {type(state).__name__}, expected tensors by name"
        raise WeightsError(problem, "Save them with torch.save(model.state_dict(), FILE)", path=path, code="E204")
    return state


def _reject_text(path: Path) -> None:
    """Raise WeightsError for what a failed download leaves: an empty file, a page, or a pointer of Git LFS."""
    with path.open("rb") as file:
        start = file.read(SNIFFED_BYTES)
    text = start.decode("utf-8", "replace").translate(TEXT_CONTROLS)
    if start.startswith(GIT_LFS_SIGNATURE):
        problem, fix = "the file is a Git LFS pointer, without the weights", "Run `git lfs pull` in its repository"
        raise WeightsError(problem, fix, path=path, code="E204")
    if not start:
        problem = "the file is empty (0 bytes)"
    elif text.isprintable() and INVALID not in text[:-1]:  # the last character may be cut
        problem = "the file is a text or HTML page, as from a download that needs a confirmation"
    else:
        return
    raise WeightsError(problem, "Download it again in a browser", path=path, code="E204")


def _list_allowed_globals() -> list[Callable | tuple[Callable, str]]:
    """List what checkpoints of training scripts hold beside tensors: the options of the script, and numpy numbers.

    The functions and classes only store values. numpy 1 and 2 have different names for the function of numbers.
    """
    make_number = cast(Callable, np.float64(0).__reduce__()[0])
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    number_types = {type(np.dtype(code)) for code in f"?{np.typecodes['AllInteger']}efd"}
    allowed = [argparse.Namespace, np.dtype, *number_types, *((make_number, name) for name in names)]
    caller_allowed = torch.serialization.get_safe_globals()  # torch would remove these afterwards
    return [value for value in allowed if value not in caller_allowed]


def _validate_archive(path: Path) -> None:
    """Raise unless the file is an uncompressed zip archive with correct checksums, or a pickle of older versions.

    torch.load checks neither the checksums nor the compression.
    """
    with path.open("rb") as file:
        signature = file.read(4)
    if signature != ZIP_SIGNATURE:
        if signature[:1] != PICKLE_SIGNATURE:
            problem, fix = "not a file written by torch.save", "Pass a .safetensors or .pth file as `weights`"
            raise WeightsError(problem, fix, path=path, code="E204")
        return
    with ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            problem = "the file is a TorchScript archive, a network with its code"
            fix = "If you trust it, pass the result of torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
            raise WeightsError(problem, fix, path=path, code="E206")
        if any(entry.compress_type != ZIP_STORED for entry in archive.infolist()):
            raise ValueError("compressed, but torch.save does not compress: the decompressed size is unknown")
        if damaged := archive.testzip():
            raise ValueError(f"wrong checksum of {damaged[:40]!r}")
