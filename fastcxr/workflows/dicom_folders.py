"""Folders of DICOM results: new or empty, or with the results of an interrupted prediction, which is continued.

Until the prediction ends, a folder has a state file with what the results depend on.
"""

import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcxr.data.image_table import ImageInput
from fastcxr.errors import OutputError, RecipeError
from fastcxr.export.dicom_attributes import import_highdicom
from fastcxr.io.files import convert_write_errors, read_json, write_json
from fastcxr.io.lock import LOCK_FILE_NAME, directory_lock
from fastcxr.io.packages import find_missing
from fastcxr.workflows.prediction import find_difference

STATE_FILE, STATE_FORMAT = ".fastcxr-dicom.json", 1
SUFFIX = ".dcm"
TEMPORARY_PATTERN = re.compile(r"\.[\d.]+\.dcm\.[0-9a-f]{16}")  # see io.files.atomic_file; of a killed process
EMPTY_FIX = "Choose another folder, or remove this one"


@dataclass(frozen=True, kw_only=True)
class DicomFolders:
    """Folders of the DICOM results, each new or empty.

    Attributes:
        dicom_sr: of structured reports; None: none are written.
        dicom_sc: of secondary captures with the saliency map of the most probable class or finding; None: none.
        csv: the file with the rows of the same prediction, if any.
    """

    dicom_sr: Path | None = None
    dicom_sc: Path | None = None
    csv: Path | None = None

    def list_kinds(self) -> dict[str, Path]:
        """Return the folder of each wanted kind, SR or SC."""
        return {kind: path for kind, path in (("SR", self.dicom_sr), ("SC", self.dicom_sc)) if path is not None}

    def hash_other_outputs(self, kind: str) -> str:
        """Return a hash of where the other outputs are, as seen from the folder of this kind: SR or SC.

        An interrupted prediction with other outputs is another one. Its folders can be moved together.
        """
        folder, others = self.list_kinds()[kind].resolve(), self.list_kinds() | ({"CSV": self.csv} if self.csv else {})
        names = [(name, os.path.relpath(path.resolve(), folder)) for name, path in others.items() if name != kind]
        return hashlib.sha256(repr(names).encode("utf-8", "surrogateescape")).hexdigest()

    def validate(self) -> None:
        """Raise before a long computation what the writing would raise.

        Raises:
            OutputError: a folder has other files, is a file, or has no parent folder.
            PackageError: highdicom is not installed.
            RecipeError: both are the same folder.
        """
        paths = list(self.list_kinds().values())
        if paths:
            import_highdicom()
        if len({path.resolve() for path in paths}) < len(paths):
            raise RecipeError("`dicom_sr` and `dicom_sc` are the same folder", "Pass two folders")
        for path in paths:
            _validate_folder(path)

    def reject_input_folders(self, images: ImageInput | Iterable[ImageInput]) -> None:
        """Raise OutputError if a folder is in a folder of the images, where the next prediction would read its files.

        `images`: see make_image_table.
        """
        inputs = images if isinstance(images, list | tuple) else [images]
        for one in (Path(one).resolve() for one in inputs if isinstance(one, str | Path)):
            for path in self.list_kinds().values():
                if path.resolve().is_relative_to(one) and one.is_dir():
                    problem = "in a folder of the images, where the next prediction would read the DICOM results"
                    raise OutputError(problem, "Choose a folder beside it", path=path, code="E723")


def _validate_folder(path: Path) -> None:
    if not path.is_dir():
        if path.exists() or path.is_symlink():
            raise OutputError("a file, expected a new folder for DICOM results", EMPTY_FIX, path=path, code="E723")
        if not path.absolute().parent.is_dir():
            raise OutputError("this folder does not exist", "Create it", path=path.absolute().parent)
        return
    names = {one.name for one in path.iterdir()} - {LOCK_FILE_NAME}
    if names and STATE_FILE not in names:
        problem = "this folder is not empty, and holds no interrupted prediction"
        raise OutputError(problem, EMPTY_FIX, path=path, code="E723")


class ResultFolder:
    """A folder of one kind of results.

    Attributes:
        folder: the folder.
        uid: identifies the prediction; the UIDs of its results are derived from it.
    """

    def __init__(self, folder: Path, identifier: str):
        self.folder, self.uid = folder, identifier

    def count_files(self) -> int:
        """Return the number of written results."""
        return sum(1 for _ in self.folder.glob(f"*{SUFFIX}"))

    def finish(self) -> int:
        """Remove the state file, and return the number of written results."""
        with convert_write_errors(self.folder):
            (self.folder / STATE_FILE).unlink(missing_ok=True)
        return self.count_files()


@contextmanager
def open_result_folder(folder: Path, kind: str, description: Mapping[str, Any]) -> Iterator[ResultFolder]:
    """Yield a folder that this process owns; its state file stays if the prediction does not end, and has results.

    Args:
        folder: new, empty, or of an interrupted prediction.
        kind: SR or SC.
        description: of describe_prediction, and the entry `outputs` of hash_other_outputs.

    Raises:
        OutputError: the folder has other files, or results of another prediction, or cannot be written.
        BusyError: another process writes into the folder.
    """
    is_new = not folder.exists()
    with convert_write_errors(folder):
        folder.mkdir(exist_ok=True)
    part = None
    try:
        with _lock_if_possible(folder):
            part = ResultFolder(folder, _read_or_write_state(folder, kind, description))
            try:
                yield part
            finally:
                if not part.count_files():
                    (folder / STATE_FILE).unlink(missing_ok=True)
    finally:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def _lock_if_possible(folder: Path) -> AbstractContextManager[None]:
    return nullcontext() if find_missing(("filelock",)) else directory_lock(folder)


def _read_or_write_state(folder: Path, kind: str, description: Mapping[str, Any]) -> str:
    """Return the identifier of an interrupted prediction of the same images and model, or of a new one."""
    path = folder / STATE_FILE
    _validate_folder(folder)
    if not path.exists():
        identifier = uuid.uuid4().hex
        write_json(path, {"format": STATE_FORMAT, "kind": kind, "uid": identifier, "description": dict(description)})
        return identifier
    try:
        state = read_json(path)
        identifier, found = str(state["uid"]), state["description"]
        difference = "another kind of results" if state["kind"] != kind else find_difference(found, description)
        if not difference and found.get("outputs") != description.get("outputs"):
            difference = "another CSV or other folders of DICOM results"
        if state["format"] != STATE_FORMAT:
            difference = "another version"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problem = "the state of an interrupted prediction is damaged"
        raise OutputError(problem, EMPTY_FIX, path=folder, code="E724") from error
    if difference:
        problem = f"holds DICOM results of an interrupted prediction with {difference}"
        fix = "Repeat its command to continue it, or choose another folder"
        raise OutputError(problem, fix, path=folder, code="E724")
    for one in folder.iterdir():
        if TEMPORARY_PATTERN.fullmatch(one.name):
            one.unlink(missing_ok=True)
    return identifier
