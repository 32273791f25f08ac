"""The state of an unfinished run on the disk: whole or not at all, with a checksum, two generations, no pickle.

A generation is one safetensors file whose header holds the JSON part, and a sha256 file that is written before it: a
state that is there has its checksum, and one that a crash interrupted never has its name.
"""

import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fastcxr.errors import ModelError, OutputError, StorageError
from fastcxr.io.files import atomic_write, compute_sha256
from fastcxr.io.formats import CHECKPOINT_FORMAT, FORMAT_KEY

log = logging.getLogger("fastcxr")
N_GENERATIONS = 2
FREE_SPACE_FIX = "Free some room and give the same command again"
STATE_FILE_PATTERN = re.compile(r"state-(\d{6})\.safetensors")
JSON_TYPES = (bool, int, str, type(None))


class Checkpoints:
    """The states of one run in `folder`, the newest two; `mirror`, a slower place, gets a checked copy of each."""

    def __init__(self, folder: str | Path, mirror: str | Path | None = None):
        self.folder, self.mirror = Path(folder), mirror and Path(mirror)

    def write(self, state: dict[str, Any]) -> None:
        """Keep this state as the newest. Raises StorageError where it finds no room; the states before it stay."""
        tensors: dict = {}
        tree = flatten(state, tensors)
        content = save(tensors, {FORMAT_KEY: str(CHECKPOINT_FORMAT), "tree": json.dumps(tree, allow_nan=False)})
        problem = "the state needs {needed}, {free} are free; the one before it is kept"
        self._validate_free_space(len(content), problem)
        number = max(self._list_numbers(), default=0) + 1
        try:
            self._write_files(self.folder, number, content)
        except OutputError as error:
            write_problem = (
                f"the state needs {len(content) / 1e6:,.1f} MB and {error.problem}; the one before it is kept"
            )
            raise type(error)(write_problem, FREE_SPACE_FIX, path=self.folder) from error
        self._remove_old(self.folder)
        if self.mirror:
            self._write_to_mirror(number, content)

    def validate_free_space(self, weights_bytes: int) -> None:
        """Raises StorageError where a run whose weights take `size` bytes would not find room for all that it keeps."""
        # a state holds the weights, the best ones so far, and two moments; at the end the model stands beside them
        self._validate_free_space(weights_bytes * (4 * N_GENERATIONS + 1), "this run needs {needed}, {free} are free")

    def _validate_free_space(self, needed_bytes: int, problem: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed_bytes:
            needed, free = (f"{bytes_ / 1e6:,.1f} MB" for bytes_ in (needed_bytes, free))
            raise StorageError(problem.format(needed=needed, free=free), FREE_SPACE_FIX, path=self.folder)

    def read(self) -> dict[str, Any] | None:
        """The newest intact state; None where there is none at all. A damaged one is named aloud.

        Raises ModelError where states are there and none of them is intact.
        """
        numbers = sorted(self._list_numbers(), reverse=True)
        for number in numbers:
            try:
                return _read_state(self._make_path(number))
            except ModelError as error:
                log.warning("%s", error)
        if numbers:
            fix = "Restore a copy of it, or start a new run with --no-resume"
            raise ModelError("no state in this folder is intact", fix, path=self.folder, code="E303")
        return None

    def copy_from_mirror(self) -> None:
        """What the mirror has of this run, where there is nothing here. Each state is checked when it is read."""
        if self.has_states() or not self.mirror:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in [*self.mirror.glob("state-*"), *self.mirror.glob("*.csv")]:
            atomic_write(self.folder / path.name, path.read_bytes())

    def copy_to_mirror(self, name: str) -> None:
        """Put a file that stands beside the states into the mirror too."""
        if self.mirror:
            atomic_write(self.mirror / name, (self.folder / name).read_bytes())

    def has_states(self) -> bool:
        """Whether a state was ever kept here."""
        return bool(self._list_numbers())

    def remove(self) -> None:
        """The run is over: nothing is left to go on with, here or in the mirror."""
        for folder in filter(None, (self.folder, self.mirror)):
            shutil.rmtree(folder, ignore_errors=True)

    def _list_numbers(self) -> list[int]:
        return [
            int(match[1]) for path in self.folder.glob("state-*") if (match := STATE_FILE_PATTERN.fullmatch(path.name))
        ]

    def _make_path(self, number: int) -> Path:
        return self.folder / f"state-{number:06d}.safetensors"

    def _write_files(self, folder: Path, number: int, content: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self._make_path(number).name
        checksum_line = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
        atomic_write(_make_checksum_path(path), checksum_line)
        atomic_write(path, content)

    def _remove_old(self, folder: Path) -> None:
        """All but the newest generations go, and drafts and checksums that a crash left."""
        kept_names = {path.name for path in sorted(folder.glob("state-*.safetensors"))[-N_GENERATIONS:]}
        for path in [*folder.glob("state-*"), *folder.glob(".state-*")]:
            if path.name.removesuffix(".sha256") not in kept_names:
                path.unlink(missing_ok=True)

    def _write_to_mirror(self, number: int, content: bytes) -> None:
        """A copy in the mirror, read back; trouble there is told and stops nothing."""
        path = self.mirror / self._make_path(number).name
        try:
            self._write_files(self.mirror, number, content)
            if compute_sha256(path) != hashlib.sha256(content).hexdigest():
                raise OutputError("what was written reads back otherwise", "Look at that disk", path=path)
            self._remove_old(self.mirror)
        except OSError as error:
            log.warning("the mirror has no copy of this state (%s); the one in %s is safe", error, self.folder)


def _read_state(path: Path) -> dict[str, Any]:
    """A state file, checked against its checksum before anything in it is believed."""
    if not _make_checksum_path(path).is_file() or _make_checksum_path(path).read_text(
        encoding="utf-8", errors="replace"
    )[:64] != compute_sha256(path):
        raise ModelError("sha256 differs: damaged", "The state before it is used, if there is one", path=path)
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            if header.get(FORMAT_KEY) != str(CHECKPOINT_FORMAT):
                fix = "Go on with the version that began this run, or start a new run with --no-resume"
                raise ModelError(f"a state of format {header.get(FORMAT_KEY)!r}", fix, path=path)
            return unflatten(json.loads(header["tree"]), {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"no state of fastcxr ({error})", "The state before it is used", path=path) from error


def _make_checksum_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The value as JSON; its tensors are added to `tensors`, each under a number.

    dict, list (fastcore's L becomes one), tuple, str, bool, None, int, float, NumPy arrays and numbers, tensors.
    Raises TypeError for anything else.
    """
    if isinstance(value, torch.Tensor | np.ndarray):
        return _store_tensor(value, tensors)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, JSON_TYPES):
        return value
    if isinstance(value, Mapping):
        return {"dict": [[flatten(key, tensors), flatten(element, tensors)] for key, element in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [flatten(element, tensors) for element in value]}
    if isinstance(value, list) or type(value).__name__ == "L":
        return [flatten(element, tensors) for element in value]
    raise TypeError(f"no state can hold a {type(value).__name__}")


def unflatten(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The value that `flatten` was given; tensors lie in memory as they lay, on the CPU."""
    if isinstance(tree, list):
        return [unflatten(element, tensors) for element in tree]
    if not isinstance(tree, dict):
        return tree
    [(tag, content)] = [item for item in tree.items() if item[0] != "stride"]
    if tag == "tensor":
        return _restore_strides(tensors[content], tree["stride"])
    if tag == "array":
        return tensors[content].numpy()
    if tag == "float":
        return float(content)
    if tag == "tuple":
        return tuple(unflatten(element, tensors) for element in content)
    return {unflatten(key, tensors): unflatten(element, tensors) for key, element in content}


def _store_tensor(value: torch.Tensor | np.ndarray, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    name = f"{len(tensors):06d}"
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {"array": name}
    value = value.detach()
    # the strides too: arithmetic in another order of the memory may round otherwise
    tensors[name] = value.cpu().contiguous()
    return {"tensor": name, "stride": list(value.stride())}


def _restore_strides(tensor: torch.Tensor, stride: list[int]) -> torch.Tensor:
    if list(tensor.stride()) == stride:
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)
