"""Download of a published model from the Hugging Face hub into the hub's cache, and its folder there.

A repository is an untrusted source: only files with the names of a published model are downloaded, within limits on
their number and size, and they are compared with SHA256SUMS. The loaders check them as they check any model file.
"""

import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastcxr.errors import HubError, HubUnreachableError, InputMissingError, ModelError
from fastcxr.io.files import MAX_JSON_BYTES, require_free_space
from fastcxr.io.hub_errors import convert_hub_errors, find_endpoint, is_offline
from fastcxr.io.hub_names import (
    PUBLISHED_FILE,
    WEIGHTS_FILES,
    HubName,
    is_hub_name,
    is_model_file,
    is_published,
    parse_hub_name,
)
from fastcxr.models.hub_check import check_published_files
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Bar, Progress
from fastcxr.version import VERSION

log = logging.getLogger("fastcxr")
MAX_FILES = 500
MAX_BYTES = {".safetensors": 20_000_000_000, ".json": MAX_JSON_BYTES, ".md": 1_000_000, "": 1_000_000}
SHOWN_BYTES = 1_000_000  # a step of the progress bar
SHORT_COMMIT = 7  # digits of a commit in messages
PUSH_FIX = "Pass the name of a model that `fastcxr push` published"


def find_model_dir(folder: str | Path, progress: Progress | None = None) -> Path:
    """Return the folder of a model: of hf://owner/name the folder in the hub's cache, after a download if needed.

    Without a connection the newest revision in the cache is used. The files of a published model are compared with
    their checksums, also in a folder. Raises HubError, InputMissingError or ModelError if the hub does not have the
    model, ModelError if a file does not have its checksum, and RecipeError for an invalid name.
    """
    if is_hub_name(folder):
        name = parse_hub_name(folder)
        folder = download_model(name, progress or make_default_progress())
        check_published_files(folder, str(name))
    elif is_published(folder):
        check_published_files(Path(folder))
    return Path(folder)


def download_model(name: HubName, progress: Progress) -> Path:
    """Return the folder of a published model in the hub's cache; see find_model_dir."""
    if is_offline():
        return _find_cached(name, None)
    try:
        return _download(name, progress)
    except HubUnreachableError as error:
        return _find_cached(name, error)


def make_api() -> Any:
    """Return the client of the hub."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=find_endpoint(), library_name="fastcxr", library_version=VERSION)


def _find_cached(name: HubName, error: HubUnreachableError | None) -> Path:
    """Return the folder in the cache. Without one, raise the error, or that requests are forbidden."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(name.repo, PUBLISHED_FILE, revision=name.revision)
    if not isinstance(file, str):
        if error is not None:
            raise error
        problem = f"{name}: HF_HUB_OFFLINE forbids requests to the hub, and its cache does not have this model"
        raise HubUnreachableError(problem, "Unset HF_HUB_OFFLINE, and download the model once", code="E703")
    folder = Path(file).parent
    reason = "HF_HUB_OFFLINE is set" if error is None else error.problem
    log.warning("%s. Using commit %s of %s in the cache", reason, folder.name[:SHORT_COMMIT], name.repo)
    return folder


def _download(name: HubName, progress: Progress) -> Path:
    api = make_api()
    with convert_hub_errors(name.repo):
        commit = _find_commit(api, name)
        sizes = _list_files(api, name, commit)
        _download_files(api, name, commit, sizes, progress)
        # the only request by branch or tag, after all other files: the cache stores which commit it is
        marker = Path(api.hf_hub_download(name.repo, PUBLISHED_FILE, revision=name.revision or "main"))
    if marker.parent.name != commit:
        raise HubError(f"{name.repo} has changed during the download", "Repeat the command", code="E703")
    return marker.parent


def _find_commit(api: Any, name: HubName) -> str:
    try:
        return api.repo_info(name.repo, revision=name.revision).sha
    except Exception as error:
        if getattr(getattr(error, "response", None), "status_code", 0) in (401, 404) and _is_dataset(api, name.repo):
            problem = f"{name.repo} is a dataset on the hub, expected a model"
            raise InputMissingError(problem, PUSH_FIX, code="E704") from error
        raise


def _is_dataset(api: Any, repo: str) -> bool:
    return any(api.repo_exists(repo, repo_type=repo_type) for repo_type in ("dataset", "space"))


def _list_files(api: Any, name: HubName, commit: str) -> dict[str, int]:
    """Return the sizes in bytes of the files to download. Raises ModelError if there are too many or too large ones."""
    entries = api.list_repo_tree(name.repo, recursive=True, revision=commit)
    sizes = {entry.path: entry.size for entry in entries if hasattr(entry, "size") and is_model_file(entry.path)}
    if PUBLISHED_FILE not in sizes:
        problem = f"{name.repo} has no {PUBLISHED_FILE}: it is not a model that fastcxr published"
        raise ModelError(problem, PUSH_FIX, code="E705")
    if len(sizes) > MAX_FILES:
        problem = f"{name.repo} has {len(sizes):,} files of a model, expected at most {MAX_FILES}"
        raise ModelError(problem, PUSH_FIX, code="E705")
    for path, size in sizes.items():
        limit = MAX_BYTES[Path(path).suffix]
        if size > limit:
            problem = f"{path} of {name.repo} has {size:,} bytes, expected at most {limit:,}"
            raise ModelError(problem, PUSH_FIX, code="E705")
    return sizes


def _download_files(api: Any, name: HubName, commit: str, sizes: Mapping[str, int], progress: Progress) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    cached = {path: try_to_load_from_cache(name.repo, path, revision=commit) for path in sizes}
    missing = {path: size for path, size in sizes.items() if not isinstance(cached[path], str)}
    missing.pop(PUBLISHED_FILE, None)
    if not missing:
        return
    n_bytes = sum(missing.values())
    Path(constants.HF_HUB_CACHE).expanduser().mkdir(parents=True, exist_ok=True)
    fix = "Free disk space, or set HF_HOME to another disk"
    require_free_space(Path(constants.HF_HUB_CACHE).expanduser(), n_bytes, "the download", fix)
    with progress.bar(max(1, n_bytes // SHOWN_BYTES), f"downloading {name.repo} [MB]") as bar:
        bar_class = make_byte_counter(bar)
        for path in sorted(missing, key=lambda path: path.endswith(WEIGHTS_FILES)):
            with silence_bars():
                options = {"tqdm_class": bar_class} if _accepts_bar(api.hf_hub_download) else {}
                api.hf_hub_download(name.repo, path, revision=commit, **options)
    log.info("downloaded %s, commit %s, %.1f MB", name.repo, commit[:SHORT_COMMIT], n_bytes / 1e6)


def _accepts_bar(function: Any) -> bool:
    """Return whether this version of huggingface_hub has the argument."""
    return "tqdm_class" in inspect.signature(function).parameters


@contextmanager
def silence_bars() -> Iterator[None]:
    """Hide the progress bars of huggingface_hub in the block."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    was_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            enable_progress_bars()


def make_byte_counter(bar: Bar) -> type:
    """Return a class in the place of tqdm that advances `bar` by one step for each SHOWN_BYTES."""
    from tqdm.auto import tqdm

    class ByteCounter(tqdm):
        n_bytes = 0

        def __init__(self, *arguments: Any, **options: Any):
            super().__init__(disable=True)

        def update(self, n: float | None = 1) -> bool | None:
            ByteCounter.n_bytes += int(n or 0)
            steps, ByteCounter.n_bytes = divmod(ByteCounter.n_bytes, SHOWN_BYTES)
            if steps:
                bar.advance(steps)
            return None

    return ByteCounter
