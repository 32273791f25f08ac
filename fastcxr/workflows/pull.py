"""Download a published model from the Hugging Face hub into a new folder, after the checks of any model file."""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcxr.errors import FastcxrError, ModelError, make_type_error, require_type
from fastcxr.io.files import atomic_folder, write_checksums
from fastcxr.io.hub_names import HubName, is_model_file, parse_hub_name
from fastcxr.models.bundle import load_model
from fastcxr.models.hub_check import DO_NOT_USE_FIX, check_published_files
from fastcxr.models.hub_download import download_model
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.report.notices import Notice
from fastcxr.workflows.published_model import PublishedFacts, read_published_facts

log = logging.getLogger("fastcxr")


@dataclass(frozen=True, kw_only=True)
class PulledModel:
    """A downloaded model: its folder, its name and commit on the hub, and its critical notices."""

    folder: Path
    repo: str
    commit: str
    notices: tuple[Notice, ...]


def pull(
    repo: str, folder: str | Path, *, revision: str | None = None, progress: Progress | None = None
) -> PulledModel:
    """Download a model that `push` published into a new folder, for load_model, predict and evaluate.

    The repository is an untrusted source. Only files with the names of a published model are downloaded, never HTML.
    They are compared with their checksums, and the model is loaded once. If a check fails, no folder remains.

    Args:
        repo: owner/name on the hub.
        folder: folder to create.
        revision: branch, tag or commit; default: the newest one.
        progress: progress display.

    Raises:
        HubError: the hub rejects the request, or cannot be reached and its cache does not have the model.
        InputMissingError: the hub has no such model or revision.
        ModelError: a file is damaged, invalid, too large, or does not match its checksum.
        OutputError: the folder is not empty or cannot be written.
    """
    if not isinstance(repo, str):
        raise make_type_error("repo", repo, "str", "Pass a name such as my-group/covid-resnet50")
    require_type("folder", folder, str, Path)
    name = parse_hub_name(repo, revision)
    return copy_published_model(name, Path(folder), progress or make_default_progress())


def copy_published_model(name: HubName, folder: Path, progress: Progress) -> PulledModel:
    """Download a model into the hub's cache, and copy it into a new folder after all checks."""
    with atomic_folder(folder) as temporary_dir:
        cached = download_model(name, progress)
        for path in sorted(cached.rglob("*")):
            file = path.relative_to(cached).as_posix()
            if path.is_file() and is_model_file(file):
                (temporary_dir / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(path, temporary_dir / file)
        facts = check_published_model(temporary_dir, name)
        write_checksums(temporary_dir)
    return PulledModel(folder=folder, repo=name.repo, commit=cached.name, notices=facts.notices)


def check_published_model(folder: Path, name: HubName) -> PublishedFacts:
    """Compare the files with their checksums, and load the model. Raises ModelError with names of the hub."""
    for file in check_published_files(folder, str(name)):
        log.info("%s was changed after the push", file)
    try:
        facts = read_published_facts(folder)
        load_model(folder, precision="fp32", device="cpu")
    except FastcxrError as error:
        raise _rename_error(error, folder, name) from error
    return facts


def _rename_error(error: FastcxrError, folder: Path, name: HubName) -> FastcxrError:
    """Return the error with the name on the hub in place of the temporary folder, which is removed."""
    file: Any = Path(error.path).relative_to(folder) if error.path and Path(error.path).is_relative_to(folder) else ""
    problem = f"{name}{f' {file}' if str(file) not in ('', '.') else ''}: {error.problem}"
    return ModelError(problem, DO_NOT_USE_FIX, code=error.code)
