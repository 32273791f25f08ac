"""A path comes in; an open regular file, and what its first bytes say that it holds, go out."""

import errno
import logging
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastcxr.errors import ImageError

HEAD_BYTES = 2048  # bytes that tell what a file is; a DICOM file says so at byte 128

DICOM_SUFFIXES = (".dcm", ".dicom")
IMAGE_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
}

# what people and failed downloads leave under an image's name
FOREIGN_SIGNATURES = {
    rb"GIF8": "GIF",
    rb"RIFF....WEBP": "WebP",
    rb"....ftyp(heic|heix|mif1|msf1)": "HEIC",
    rb"....ftypavi[fs]": "AVIF",
    rb"....ftyp": "video",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
    rb"\0\0\0\x0cJXL |\xff\x0a": "JPEG XL",
    rb"8BPS": "Photoshop",
    rb"%PDF": "PDF",
    rb"PK(\x03\x04|\x05\x06)": "ZIP",
    rb"\x1f\x8b": "gzip",
    rb"7z\xbc\xaf\x27\x1c|Rar!": "archive",
    rb"\x89HDF": "HDF5",
    rb"\x93NUMPY": "NumPy",
    rb"NRRD": "NRRD",
    rb"MATLAB 5": "MATLAB",
    rb"(\x5c\x01\0\0|\0\0\x01\x5c).{340}(n[+i]1)\0": "NIfTI",
    rb"version https://git-lfs": "Git LFS pointer",
    rb"(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head|body|script)": "HTML",
    rb"(\xef\xbb\xbf)?\s*<(\?xml[^>]*>\s*)?(<!doctype\s+svg|svg)|(\xef\xbb\xbf)?\s*<\?xml.*<svg": "SVG",
    rb"(\xef\xbb\xbf)?\s*<\?xml": "XML",
    rb"\0+\Z": "nothing but zeros",
}

FIXES = {
    "HTML": "Download it again: a web page was saved in its place",
    "Git LFS pointer": "Run `git lfs pull` to fetch the image itself",
    "ZIP": "Unpack it",
    "gzip": "Unpack it",
    "archive": "Unpack it",
    "nothing but zeros": "Copy or download it again",
}
DEFAULT_FIX = "Convert it to PNG, JPEG, TIFF, BMP or DICOM, or leave it out"


@contextmanager
def open_file(path: str | Path) -> Iterator[BinaryIO]:
    """The regular file at `path`, open for reading; anything else is an ImageError, and nothing ever waits."""
    with _open_regular_file(str(path)) as file:
        try:
            yield file
        except OSError as error:
            if error.errno is None:  # a decoder's own
                raise
            problem = f"cannot be read ({error.strerror})"
            fix = "Check the disk, or copy the file again from elsewhere"
            raise ImageError(problem, fix, path=str(path), code="E113") from error


def _open_regular_file(path: str) -> BinaryIO:
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISREG(mode):  # asked before opening: a FIFO without a writer would wait for ever
            return Path(path).open("rb")
    except OSError as error:
        problem, fix = {
            errno.ENOENT: ("no such file, or a link that leads nowhere", "Check the name, or restore the file"),
            errno.ENOTDIR: ("no such file: a part of the path is no folder", "Check the name"),
            errno.EACCES: ("no permission to read it", "Give yourself the right to read it (chmod +r)"),
        }.get(error.errno, (f"cannot be opened ({error.strerror})", "Check the disk and the name"))
        raise ImageError(problem, fix, path=path, code="E113") from error
    except ValueError as error:  # a zero byte or a lone surrogate in the name
        raise ImageError("no possible name of a file", "Check the name", path=path, code="E113") from error
    raise _make_not_a_file_error(path, mode)


def _make_not_a_file_error(path: str, mode: int) -> ImageError:
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    kind = kinds.get(stat.S_IFMT(mode), "device")
    return ImageError(f"a {kind}, not a file", "Remove it from the list of images", path=path, code="E112")


def detect_format(head: bytes) -> str | None:
    """PNG, JPEG, TIFF, BMP or DICOM by the first bytes, whatever the name; None for anything else."""
    if head[128:132] == b"DICM":  # first: the 128 bytes before it are free, and some files put a TIFF header there
        return "DICOM"
    return next((kind for magic, kind in IMAGE_SIGNATURES.items() if head.startswith(magic)), None)


def may_be_dicom(path: str | Path, head: bytes) -> bool:
    """DICOM by its mark, or worth a try: old exports lack the mark, and often have the tail of a UID for a suffix."""
    suffix, kind = Path(path).suffix.lower(), detect_format(head)
    has_dicom_suffix = suffix in DICOM_SUFFIXES or not suffix.strip(".0123456789")
    return kind == "DICOM" or (
        has_dicom_suffix and kind is None and bool(head) and detect_foreign_content(head) is None
    )


def detect_foreign_content(head: bytes) -> str | None:
    """What a file that is no image holds, in a word, or None when the bytes say nothing."""
    for pattern, name in FOREIGN_SIGNATURES.items():
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            return name
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or _is_text(head):
        return "text"
    return None


def _is_text(head: bytes) -> bool:
    control = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    return not control and bool(head.strip()) and _is_utf8(head)


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # the head may end inside a letter
    return True


def make_content_error(path: str, head: bytes) -> ImageError:
    """The error for a file that is no image: what it holds, and what its name says."""
    name, suffix = detect_foreign_content(head), Path(path).suffix
    name_text = f"the name says {suffix}" if suffix else "the name has no ending"
    problem = f"content is {name}, not an image" if name else "content is of no known kind, not an image"
    return ImageError(f"{problem} ({name_text})", FIXES.get(name, DEFAULT_FIX), path=path, code="E102")


def _set_loggers_disabled(disabled: bool) -> None:
    for name in ("pydicom", "PIL.TiffImagePlugin"):
        logging.getLogger(name).disabled = disabled


class _WarningSuppressor:
    """Counts who decodes: catch_warnings knows no threads, so the first in sets it and the last out takes it away."""

    def __init__(self):
        self.lock, self.n_active, self.catcher = threading.Lock(), 0, None

    def enter(self) -> None:
        with self.lock:
            if not self.n_active:
                self.catcher = warnings.catch_warnings()
                self.catcher.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\b")
                _set_loggers_disabled(True)
            self.n_active += 1

    def leave(self) -> None:
        with self.lock:
            self.n_active -= 1
            if not self.n_active:
                _set_loggers_disabled(False)
                self.catcher.__exit__(None, None, None)


_suppressor = _WarningSuppressor()


@contextmanager
def suppress_decoder_warnings() -> Iterator[None]:
    """Pillow's and pydicom's own warnings stay unsaid: ours name the file, and pydicom's quote the patient's data."""
    _suppressor.enter()
    try:
        yield
    finally:
        _suppressor.leave()


@dataclass
class Remarks:
    """What was found while one image was decoded.

    warnings: the text of each, by its code. peak: see `gray.find_peak`, of an image deeper than 8 bits whose file
    states no bit depth; None for any other.
    """

    warnings: dict[str, str] = field(default_factory=dict)
    peak: int | None = None


_thread = threading.local()
_warned_codes: set[str] = set()


@contextmanager
def collect_remarks() -> Iterator[Remarks]:
    """Collect what this thread remarks on an image in this block, instead of logging it."""
    before, remarks = getattr(_thread, "remarks", None), Remarks()
    _thread.remarks = remarks
    try:
        yield remarks
    finally:
        _thread.remarks = before


def record_peak(peak: int) -> None:
    """Remark that the file states no bit depth, and what its depth is to be chosen by."""
    if remarks := getattr(_thread, "remarks", None):
        remarks.peak = peak


def log_counted_warnings(found: Iterable[tuple[str, Remarks]], *, again: bool = True) -> None:
    """Log each warning once, with the number of its images and the name of the first.

    `found`: paths and what was remarked on them. `again`: also those that this process has logged before.
    """
    named: dict[tuple[str, str], list[str]] = {}
    for path, remarks in found:
        for code, text in remarks.warnings.items():
            named.setdefault((code, text), []).append(Path(path).name)
    said_before = set(_warned_codes)
    for (code, text), names in named.items():
        if again or code not in said_before:
            images = f"{len(names):,} image{'s' * (len(names) > 1)}"
            logging.getLogger("fastcxr").warning("FCX-%s %s: %s (first: %r)", code, images, text, names[0])
        _warned_codes.add(code)


def warn_once(code: str, path: str, text: str) -> None:
    """A warning about one file that stands for all of its kind: a cohort would repeat it a thousand times.

    Inside `collect_remarks` it is kept for whoever counts it.
    """
    if remarks := getattr(_thread, "remarks", None):
        remarks.warnings[code] = text
    elif code not in _warned_codes:
        _warned_codes.add(code)
        name = Path(path).name  # the folders above it are nobody's business, and run.json keeps what is said
        logging.getLogger("fastcxr").warning("FCX-%s %r: %s (said once, more files may be like it)", code, name, text)
