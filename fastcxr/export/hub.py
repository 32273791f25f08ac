"""Repositories of models on the Hugging Face hub: state, creation, and an upload that is one commit."""

import hashlib
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastcxr.errors import HubError, InputMissingError, OutputError
from fastcxr.io.files import CHECKSUMS_FILE, compute_sha256, read_checksums
from fastcxr.io.hub_errors import convert_hub_errors, find_endpoint, make_token_error
from fastcxr.io.hub_names import README_FILE, REPORT_FILES, is_model_file
from fastcxr.models.hub_download import make_api, silence_bars


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A model repository on the hub.

    Attributes:
        name: owner/name.
        exists: whether the hub has it, and the token may read it.
        is_private: whether only its owner and members of the organization can read it.
        commit: newest commit, None for a repository that does not exist.
        files: paths of its files.
    """

    name: str
    exists: bool
    is_private: bool
    commit: str | None = None
    files: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Address of its page."""
        return f"{find_endpoint()}/{self.name}"


def require_token(repo: str) -> None:
    """Raise HubError if there is no token of the hub."""
    from huggingface_hub import get_token

    if not get_token():
        raise make_token_error(repo)


def read_repository(repo: str) -> Repository:
    """Return the state of a repository on the hub. Raises HubError."""
    try:
        with convert_hub_errors(repo, writes=True):
            info = make_api().repo_info(repo)
    except InputMissingError:
        return Repository(name=repo, exists=False, is_private=True)
    files = tuple(one.rfilename for one in info.siblings or ())
    return Repository(name=repo, exists=True, is_private=bool(info.private), commit=info.sha, files=files)


def create_repository(repo: str, *, private: bool) -> Repository:
    """Create a repository unless it exists, and return its state.

    Raises HubError if the hub rejects it, or if the repository is public and `private` is given: another process, or a
    rule of the organization, has made it so.
    """
    with convert_hub_errors(repo, writes=True):
        make_api().create_repo(repo, private=private, exist_ok=True)
    repository = read_repository(repo)
    if not repository.exists or repository.is_private != private:
        state = "private" if repository.is_private else "public"
        problem = f"{repo} is {state} on the hub, expected {'private' if private else 'public'}: nothing is sent"
        raise HubError(problem, f"Change its visibility at {repository.url}/settings", code="E707")
    return repository


def has_edited_card(repository: Repository) -> bool:
    """Return whether README.md on the hub is not what the last push wrote: then its owner has completed it.

    Its checksum in SHA256SUMS on the hub shows that. Without one, it counts as edited. Raises HubError.
    """
    if README_FILE not in repository.files:
        return False
    with TemporaryDirectory(prefix="fastcxr-") as folder:
        for name in (README_FILE, CHECKSUMS_FILE):
            if name in repository.files:
                with convert_hub_errors(repository.name, writes=True), silence_bars():
                    make_api().hf_hub_download(repository.name, name, revision=repository.commit, local_dir=folder)
        try:
            written = read_checksums(Path(folder)).get(README_FILE)
        except OutputError:  # damaged
            written = None
        return compute_sha256(Path(folder) / README_FILE) != written


def has_contents(repository: Repository, contents: Mapping[str, Path | bytes]) -> bool:
    """Return whether the newest commit of a repository has all these files with the same contents. Raises HubError."""
    if not set(contents) <= set(repository.files):
        return False
    with convert_hub_errors(repository.name, writes=True):
        tree = list(make_api().list_repo_tree(repository.name, recursive=True, revision=repository.commit))
    entries = {entry.path: entry for entry in tree if entry.path in contents}
    return set(entries) == set(contents) and all(_is_entry(entries[name], contents[name]) for name in contents)


def _is_entry(entry: Any, content: Path | bytes) -> bool:
    """Return whether an entry of the tree has this content: a large file has a SHA-256 there, others that of git."""
    if entry.lfs is not None:
        digest = compute_sha256(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
        return entry.lfs.sha256 == digest
    data = content.read_bytes() if isinstance(content, Path) else content
    header = f"blob {len(data)}\0".encode()
    return entry.blob_id == hashlib.sha1(header + data, usedforsecurity=False).hexdigest()


def list_obsolete_files(repository: Repository, sent: Collection[str]) -> list[str]:
    """Return the files of an earlier push that this one does not send, such as a report with images."""
    return [name for name in repository.files if name not in sent and (is_model_file(name) or name in REPORT_FILES)]


def upload_files(
    repository: Repository, contents: Mapping[str, Path | bytes], obsolete: Collection[str], message: str
) -> str:
    """Send files in one commit, which removes the obsolete ones of an earlier push, and return the commit.

    `contents`: a local file, or the bytes, by the path in the repository. Before the commit nothing is visible.
    Contents that the hub has from an interrupted upload are not sent again.

    Raises:
        HubError: the hub rejects the upload, or the repository has changed since `repository` was read.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = [CommitOperationDelete(name) for name in obsolete]
    operations += [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content))
        for name, content in contents.items()
    ]
    with convert_hub_errors(repository.name, writes=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the metadata of the card
        commit = make_api().create_commit(
            repository.name, operations, commit_message=message, parent_commit=repository.commit
        )
    return commit.oid
