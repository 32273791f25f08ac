"""Comparison of the files of a published model with SHA256SUMS, in each way of loading it.

The folder is that of pull, of the hub's cache, or of another downloader. README.md can be edited on the hub, and files
that are not part of a published model are not read: both are no error.
"""

from pathlib import Path

from fastcxr.errors import ModelError, OutputError
from fastcxr.io.files import CHECKSUMS_FILE, compute_sha256, read_checksums
from fastcxr.io.hub_names import README_FILE, is_model_file, is_published

DO_NOT_USE_FIX = "Do not use it. Choose another revision of it, or ask its owner"


def is_card_edited(folder: Path) -> bool:
    """Return whether the folder is a published model whose README.md differs from its checksum, or has none."""
    card = folder / README_FILE
    return is_published(folder) and card.is_file() and compute_sha256(card) != read_checksums(folder).get(README_FILE)


def check_published_files(folder: Path, name: str | None = None) -> list[str]:
    """Compare the files of a published model with SHA256SUMS, and return those that its owner has edited.

    Args:
        folder: folder with published.json.
        name: hf://owner/name in the place of the folder in messages.

    Raises:
        ModelError: SHA256SUMS is missing or damaged, or a file is missing, is not listed, or has another checksum.
    """
    if not (folder / CHECKSUMS_FILE).is_file():
        raise _make_error(f"a published model without {CHECKSUMS_FILE}: its files cannot be checked", folder, name)
    try:
        checksums = read_checksums(folder)
    except OutputError as error:
        raise _make_error(f"{CHECKSUMS_FILE} is damaged", folder, name) from error
    found = {file: path for path in folder.rglob("*") if is_model_file(file := path.relative_to(folder).as_posix())}
    edited = []
    for file in sorted({*found, *filter(is_model_file, checksums)} - {CHECKSUMS_FILE}):
        if file not in found and file != README_FILE:
            raise _make_error(f"{file} is missing, which {CHECKSUMS_FILE} lists", folder, name)
        if file in found and compute_sha256(found[file]) != checksums.get(file):
            if file != README_FILE:
                problem = f"{file} does not have its checksum in {CHECKSUMS_FILE}: it is damaged or replaced"
                raise _make_error(problem, folder, name)
            edited.append(file)
    return edited


def _make_error(problem: str, folder: Path, name: str | None) -> ModelError:
    if name is None:
        return ModelError(problem, DO_NOT_USE_FIX, path=folder, code="E301")
    return ModelError(f"{name}: {problem}", DO_NOT_USE_FIX, code="E301")
