"""Weights files of the encoders: in the cache of the Hugging Face hub, downloaded, or with advice where to get them."""

import logging
import socket
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import get_token, hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError

from fastcxr.errors import WeightsError
from fastcxr.io.files import read_json
from fastcxr.models.encoders import READ_DATE, Encoder

log = logging.getLogger("fastcxr")
PREPROCESSOR_FILE = "preprocessor_config.json"  # of the hub: pixels of the weights beside it
XRV_FOLDER = Path("~/.torchxrayvision/models_data")  # of the weights that torchxrayvision downloads
MAX_PIXEL_DIFFERENCE = 1e-3  # of mean and std, which are published with four digits


def fetch_weights(encoder: Encoder) -> Path:
    """Return the weights file of an encoder, downloaded from the hub if it is not in its cache.

    Raise WeightsError with the page and the name of the file if fastcxr cannot download it.
    """
    if cached := find_cached_file(encoder):
        return cached
    validate_access(encoder)
    assert encoder.repo, "validate_access raises without a repository"
    log.info(describe_terms(encoder))
    log.info("downloading %s of %s from %s", encoder.file, encoder.name, urlparse(ENDPOINT).netloc)
    try:
        path = Path(hf_hub_download(encoder.repo, encoder.file))
        _download_preprocessor_config(encoder.repo)
    except GatedRepoError as error:
        raise _make_gate_error(encoder) from error
    except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
        raise make_unreachable_error(encoder, f"{urlparse(ENDPOINT).netloc} did not send it") from error
    return path


def find_cached_file(encoder: Encoder) -> Path | None:
    """Return the weights file in the cache of the hub or of an installed torchxrayvision, or None."""
    if encoder.access == "package":
        xrv_path = XRV_FOLDER.expanduser() / encoder.file
        return xrv_path if xrv_path.is_file() and find_spec("torchxrayvision") else None
    path = try_to_load_from_cache(encoder.repo, encoder.file) if encoder.repo else None
    return Path(path) if isinstance(path, str) else None


def validate_access(encoder: Encoder) -> None:
    """Raise WeightsError unless the weights are cached, or fastcxr can download them from a host that resolves."""
    if encoder.access == "package" or find_cached_file(encoder):
        return
    if encoder.access == "page":
        file = encoder.file or "the weights file"
        problem = f"fastcxr cannot download the weights of {encoder.name}: they are not on the Hugging Face hub"
        raise WeightsError(problem, f"Get {file} from {encoder.page} and pass `weights=FILE`", code="E202")
    if encoder.access == "gated" and not get_token():
        raise _make_gate_error(encoder)
    host = urlparse(ENDPOINT).hostname
    try:
        if not urllib.request.getproxies():
            socket.getaddrinfo(host, 443)  # the client of the hub would retry for a minute
    except OSError as error:
        raise make_unreachable_error(encoder, f"{host} is not reachable") from error


def describe_terms(encoder: Encoder) -> str:
    """Describe licence and access in one line, with the page and date of what was read."""
    gate = {"gated": "gated", "page": f"file from {encoder.page}"}.get(encoder.access, "not gated")
    access = gate if "access" in encoder.read_on or encoder.access == "page" else f"see {encoder.page}"
    return f"weights of {encoder.name}: licence {describe_licence(encoder)}; access: {access}"


def describe_licence(encoder: Encoder) -> str:
    """Return the licence with the page and date of its reading, or where to read it."""
    page = encoder.read_on.get("licence")
    return f"{encoder.licence} ({page}, read {READ_DATE})" if page else f"see {encoder.page}"


def describe_source(encoder: Encoder) -> str:
    """Describe in a few words how to get the weights: file and page, or the package that downloads them."""
    if encoder.access == "package":
        is_installed = find_spec("torchxrayvision")
        return "name it to download it" if is_installed else 'pip install "fastcxr[xrv]", then name it'
    verb = "accept the terms on" if encoder.access == "gated" else "get it from"
    return f"{encoder.file or 'the weights file'}: {verb} {encoder.page}"


def describe_pixels(encoder: Encoder, image_size: int) -> list[str]:
    """Return what a user should know about the input: another size, or pixels that were not read on their page."""
    lines = []
    if image_size != encoder.image_size:
        was_read = "image_size" in encoder.read_on
        origin = (
            f"was trained at {encoder.image_size} px" if was_read else f"is used at {encoder.image_size} px by default"
        )
        resampled = ", its position embeddings are resampled" if encoder.is_transformer else ""
        lines.append(f"{encoder.name} {origin.format(encoder.image_size)}, here {image_size} px{resampled}")
    if unread := [name for name in ("image_size", "normalization") if name not in encoder.read_on]:
        names = " and ".join(name.replace("_", " ") for name in unread)
        verb = "were" if len(unread) > 1 else "was"
        lines.append(f"{names} of {encoder.name} {verb} not read on a page of its authors: compare with {encoder.page}")
    return lines


def validate_pixels(encoder: Encoder, weights_file: Path) -> None:
    """Raise WeightsError if the preprocessor_config.json beside the weights has other pixels than the encoder."""
    path = weights_file.parent / PREPROCESSOR_FILE
    if not path.is_file():
        return
    try:
        config = dict(read_json(path))
        size = config.get("crop_size") or config.get("size") or {}
        size = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
        given = {"image_mean": encoder.mean[0], "image_std": encoder.std[0]}
        differing = [
            f"{name} {config[name]}"
            for name, value in given.items()
            if name in config and abs(float(config[name][0]) - value) > MAX_PIXEL_DIFFERENCE
        ]
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        problem = f"this file beside the weights cannot be read ({type(error).__name__})"
        raise WeightsError(problem, "Download it again, or remove it", path=path, code="E204") from error
    if size and size != encoder.image_size:
        differing.append(f"size {size}")
    if differing:
        expected = f"size {encoder.image_size}, mean {encoder.mean[0]:g}, std {encoder.std[0]:g}"
        problem = f"it has {', '.join(differing)}, but fastcxr expects {expected} for {encoder.name}"
        fix = "Pass the weights of this encoder; if they are, remove this file to use the values of fastcxr"
        raise WeightsError(problem, fix, path=path, code="E205")


def make_unreachable_error(encoder: Encoder, reason: str) -> WeightsError:
    """Return the error for weights that cannot be downloaded."""
    problem = f"the weights of {encoder.name} cannot be downloaded: {reason}"
    fix = f"Download {encoder.file} from {encoder.page} on another computer and pass `weights=FILE`"
    return WeightsError(problem, fix, code="E202")


def _make_gate_error(encoder: Encoder) -> WeightsError:
    problem = f"the weights of {encoder.name} are gated: each user accepts the terms on {encoder.page}"
    fix = f"Accept them, then run `hf auth login`, or download {encoder.file} there and pass `weights=FILE`"
    return WeightsError(problem, fix, code="E202")


def _download_preprocessor_config(repo: str) -> None:
    try:
        hf_hub_download(repo, PREPROCESSOR_FILE)
    except EntryNotFoundError:
        log.debug("%s has no %s", repo, PREPROCESSOR_FILE)
