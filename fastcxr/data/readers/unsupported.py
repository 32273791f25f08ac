"""Reject files that are neither images nor tables, with the kind of the file and what to do with it."""

import shlex
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fastcxr.data.imaging.sniff import HEAD_BYTES, IMAGE_SUFFIXES, detect_foreign_content, detect_format, open_file
from fastcxr.errors import DataError, ImageError, InputMissingError
from fastcxr.io.tables import format_names, read_header

EXPECTED = "expected a folder of images or a table"
IMAGE_FIX = "Pass the folder above the class folders, or a CSV with path and label"
CSV_FIX = "Save its table as CSV with the columns path and label"
PNG_FIX = "Save each image as PNG in one folder per class"
UNPACK_COMMANDS = {
    ".zip": "unzip", ".tar": "tar -xf", ".tgz": "tar -xf", ".tar.gz": "tar -xf", ".tar.bz2": "tar -xf",
    ".tar.xz": "tar -xf", ".7z": "7z x", ".rar": "7z x",
}  # fmt: skip
FIXES = {
    "an HTML file": "Download it again: the file contains a web page",
    "a Git LFS pointer": "Run `git lfs pull` to fetch the file itself",
    "a NumPy file": PNG_FIX,
    "an HDF5 file": "Pass a file made by `fastcxr pack`, or save each image as PNG in one folder per class",
    "a MATLAB file": PNG_FIX,
    "a NIfTI file": PNG_FIX,
    "an NRRD file": PNG_FIX,
    "a video": "Save its frames as PNG in one folder per class",
    "a PDF file": CSV_FIX,
    "a Word document": CSV_FIX,
    "a text file without columns": IMAGE_FIX,
    "an XML file": CSV_FIX,
}
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".log", ".rtf")
WORD_SUFFIXES = (".doc", ".docx", ".odt")


def reject_unsupported_file(path: Path) -> None:
    """Raise DataError for an image (E028), or for an archive, a document or a video (E040)."""
    try:
        with open_file(path) as file:
            head = file.read(HEAD_BYTES)
    except ImageError:  # the reader of the table raises an error
        return
    if kind := detect_format(head):
        raise DataError(f"the path is a {kind} image, {EXPECTED}", IMAGE_FIX, path=path, code="E028")
    kind = _detect_archive(path, head) or _detect_document(path, head)
    if kind is None:
        return
    fix = FIXES.get(kind) or f"{_make_unpack_fix(path.name)}, and pass the folder"
    raise DataError(f"the path is {kind}, {EXPECTED}", fix, path=path, code="E040")


def reject_archives(root: Path, names: Sequence[str]) -> None:
    """Raise InputMissingError (E040) if the files of a folder without class folders are archives and no images."""
    archives = [name for name in names if name.casefold().endswith(tuple(UNPACK_COMMANDS))]
    if archives and not any(name.casefold().endswith(IMAGE_SUFFIXES) for name in names):
        problem = f"0 images; the folder contains archives: {format_names(archives, 5)}"
        raise InputMissingError(problem, _make_unpack_fix(archives[0]), path=root, code="E040")


def _make_unpack_fix(name: str) -> str:
    command = next((command for suffix, command in UNPACK_COMMANDS.items() if name.casefold().endswith(suffix)), "7z x")
    return f"Unpack it with `{command} {shlex.quote(name)}`"


def _detect_archive(path: Path, head: bytes) -> str | None:
    content = detect_foreign_content(head)
    if content == "ZIP":
        return _detect_zip(path)
    if content == "archive":
        return "an archive"
    try:
        return "a tar archive" if content != "text" and tarfile.is_tarfile(path) else None
    except (OSError, EOFError):  # a damaged file, which the reader of the table reports
        return None


def _detect_zip(path: Path) -> str | None:
    """Return the kind of a ZIP file, or None for an Excel workbook, which the reader of the table reports."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        names = []
    if path.suffix.casefold() in WORD_SUFFIXES or "word/document.xml" in names:
        return "a Word document"
    if path.suffix.casefold() in (".xlsx", ".xlsm", ".ods") or "xl/workbook.xml" in names:
        return None
    is_numpy = path.suffix.casefold() == ".npz" or (names and all(name.endswith(".npy") for name in names))
    return "a NumPy file" if is_numpy else "a ZIP archive"


def _detect_document(path: Path, head: bytes) -> str | None:
    """Return the kind of a document with its article, or None for what may be a table."""
    content, suffix = detect_foreign_content(head), path.suffix.casefold()
    if suffix in WORD_SUFFIXES:  # .doc has the signature of an old Excel workbook
        return "a Word document"
    if content == "text":
        return "a text file without columns" if suffix in TEXT_SUFFIXES and len(read_header(path)) < 2 else None
    named = f"a {content}" if content == "video" or content == "Git LFS pointer" else f"{content} file"
    return next((kind for kind in FIXES if kind.endswith(named)), None)
