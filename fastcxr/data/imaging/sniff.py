"""Open image files safely, detect their format by the first bytes, and collect warnings about single images."""

import errno
import logging
import mimetypes
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from fastcxr.errors import ImageError

HEAD_BYTES = 2048  # enough to detect the format; the signature of DICOM is at byte 128

DICOM_SUFFIXES = (".dcm", ".dicom")
# also of formats that are not supported: the error names the fix
IMAGE_SUFFIXES = (
    *DICOM_SUFFIXES, ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".heic",
    ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".psd", ".svg", ".nii",
)  # fmt: skip
IMAGE_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
}

# formats that are no supported images, frequent after failed downloads or with a wrong suffix
FOREIGN_SIGNATURES = {
    rb"GIF8": "GIF",
    rb"RIFF....WEBP": "WebP",
    rb"....ftyp(heic|heix|mif1|msf1)": "HEIC",
    rb"....ftypavi[fs]": "AVIF",
    rb"....ftyp|RIFF....AVI |\x1a\x45\xdf\xa3|\0\0\x01\xba": "video",
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
    "HTML": "Download it again: the file contains a web page",
    "Git LFS pointer": "Run `git lfs pull` to fetch the image itself",
    "ZIP": "Unpack it",
    "gzip": "Unpack it",
    "archive": "Unpack it",
    "nothing but zeros": "Copy or download it again",
}
DEFAULT_FIX = "Convert it to PNG, JPEG, TIFF, BMP or DICOM, or leave it out"


@contextmanager
def open_file(path: str | Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading, without blocking. Raises ImageError for anything else."""
    with _open_regular_file(str(path)) as file:
        try:
            yield file
        except OSError as error:
            if error.errno is None:  # raised by a decoder, not by the system
                raise
            problem = f"cannot be read ({error.strerror})"
            raise ImageError(problem, "Check the disk, or copy it again", path=str(path), code="E113") from error


def _open_regular_file(path: str) -> BufferedReader:
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISREG(mode):  # checked before opening: opening a FIFO without a writer blocks
            return Path(path).open("rb")
    except OSError as error:
        problems = {
            errno.ENOENT: ("no such file, or a broken link", "Check the name, or restore the file"),
            errno.ENOTDIR: ("no such file: a part of the path is not a folder", "Check the name"),
            errno.EACCES: ("no permission to read it", "Grant the read permission (chmod +r)"),
        }
        unknown = f"cannot be opened ({error.strerror})", "Check the disk and the name"
        problem, fix = problems.get(error.errno or 0, unknown)
        raise ImageError(problem, fix, path=path, code="E113") from error
    except ValueError as error:  # a zero byte or a lone surrogate in the name
        raise ImageError("invalid file name", "Check the name", path=path, code="E113") from error
    names = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    problem = f"a {names.get(stat.S_IFMT(mode), 'device')}, not a file"
    raise ImageError(problem, "Remove it from the list of images", path=path, code="E112")


def detect_format(head: bytes) -> str | None:
    """Return PNG, JPEG, TIFF, BMP or DICOM according to the first bytes, or None for other content."""
    if head[128:132] == b"DICM":  # checked first: some files have a TIFF header in the 128 bytes of the preamble
        return "DICOM"
    return next((name for signature, name in IMAGE_SIGNATURES.items() if head.startswith(signature)), None)


def looks_like_image(path: str | Path) -> bool:
    """Return whether a file has the name or the content of an image; a damaged image has at least the name."""
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with open_file(path) as file:
            head = file.read(HEAD_BYTES)
    except ImageError:
        return False
    return detect_format(head) is not None or may_be_dicom(path, head)


def may_be_dicom(path: str | Path, head: bytes) -> bool:
    """Return whether a file has the DICOM signature, or may be an old export without it.

    The suffix of an old export is often missing, or the last part of a UID.
    """
    suffix, file_format = Path(path).suffix.lower(), detect_format(head)
    if file_format or not head:
        return file_format == "DICOM"
    has_dicom_suffix = suffix in DICOM_SUFFIXES or not suffix.strip(".0123456789")
    return has_dicom_suffix and detect_foreign_content(head) is None


def detect_foreign_content(head: bytes) -> str | None:
    """Return the name of a format that is no supported image, or None if it is unknown."""
    for pattern, name in FOREIGN_SIGNATURES.items():
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            return name
    return "text" if head.startswith((b"\xff\xfe", b"\xfe\xff")) or _is_text(head) else None


def _is_text(head: bytes) -> bool:
    if not head.strip() or any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # the head may end inside a character
    return True


def make_content_error(path: str, head: bytes) -> ImageError:
    """Return the error for a file that is not a supported image, with its content and the suffix of its name."""
    name, suffix = detect_foreign_content(head), Path(path).suffix
    is_known = suffix.lower() in DICOM_SUFFIXES or mimetypes.guess_type(f"a{suffix}")[0]
    known_text = f"ends in {suffix}" if is_known else "has an unknown suffix"  # which may be the name of a patient
    name_text = f"the file name {known_text}" if suffix else "the file name has no suffix"
    problem = f"content is {name or 'of unknown format'}, not an image ({name_text})"
    return ImageError(problem, FIXES.get(name or "", DEFAULT_FIX), path=path, code="E102")


def _set_loggers_disabled(disabled: bool) -> None:
    for name in ("pydicom", "PIL.TiffImagePlugin"):
        logging.getLogger(name).disabled = disabled


_suppression_lock = threading.Lock()
_suppression = ExitStack()
_n_suppressing = 0


@contextmanager
def suppress_decoder_warnings() -> Iterator[None]:
    """Suppress warnings of Pillow and pydicom in all threads: they name no file, and those of pydicom quote values."""
    global _n_suppressing
    with _suppression_lock:  # catch_warnings is not thread-safe: the first thread enters it, the last one exits it
        if not _n_suppressing:
            _suppression.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\b")
            _set_loggers_disabled(True)
            _suppression.callback(_set_loggers_disabled, False)
        _n_suppressing += 1
    try:
        yield
    finally:
        with _suppression_lock:
            _n_suppressing -= 1
            if not _n_suppressing:
                _suppression.close()


@dataclass
class Remarks:
    """Warnings and the peak of one decoded image.

    Attributes:
        warnings: The text of each warning, by its code.
        peak: See `intensity.find_peak`; None if the file states its bit depth or has at most 8 bits per pixel.
    """

    warnings: dict[str, str] = field(default_factory=dict)
    peak: int | None = None


CLAUSE_END = re.compile(r"[;.] |\.$")


def format_remarks(remarks: Remarks) -> str:
    """Return the code and the first clause of each warning, such as `FCX-W203 an image in colour`, joined by "; "."""
    return "; ".join(f"FCX-{code} {CLAUSE_END.split(text)[0]}" for code, text in sorted(remarks.warnings.items()))


_thread = threading.local()
_warned_codes: set[str] = set()


@contextmanager
def collect_remarks() -> Iterator[Remarks]:
    """Collect the remarks of this thread on an image in this block, instead of logging them."""
    before, remarks = getattr(_thread, "remarks", None), Remarks()
    _thread.remarks = remarks
    try:
        yield remarks
    finally:
        _thread.remarks = before


def record_peak(peak: int) -> None:
    """Record the peak of an image whose file states no bit depth."""
    if remarks := getattr(_thread, "remarks", None):
        remarks.peak = peak


class CountedWarnings:
    """Number of images with each warning, and the name of the first of them, for images that are read in blocks."""

    def __init__(self):
        self.counts: dict[tuple[str, str], int] = {}
        self.first_names: dict[tuple[str, str], str] = {}

    def add(self, found: Iterable[tuple[str, Remarks]]) -> None:
        """Count the warnings of these images: paths and remarks. The name of an empty path is not logged."""
        for path, remarks in found:
            for warning in remarks.warnings.items():
                self.counts[warning] = self.counts.get(warning, 0) + 1
                self.first_names.setdefault(warning, Path(path).name)

    def log(self, *, again: bool = True) -> None:
        """Log each warning once. `again`: also warnings with a code that this process has already logged."""
        logged_before = set(_warned_codes)
        for (code, text), n_images in self.counts.items():
            if again or code not in logged_before:
                images = f"{n_images:,} image{'s' * (n_images > 1)}"
                name = self.first_names[code, text]
                first = f" (first: {name!r})" if name else ""
                logging.getLogger("fastcxr").warning("FCX-%s %s: %s%s", code, images, text, first)
            _warned_codes.add(code)


def log_counted_warnings(found: Iterable[tuple[str, Remarks]], *, again: bool = True) -> None:
    """Log each warning once, with the number of its images and the name of the first.

    Args:
        found: Paths and the remarks on their images; an empty path is not logged.
        again: Whether to log warnings with a code that this process has already logged.
    """
    counted = CountedWarnings()
    counted.add(found)
    counted.log(again=again)


def warn_once(code: str, path: str, text: str) -> None:
    """Log a warning with this code for the first file only; inside `collect_remarks` record it for every file."""
    if remarks := getattr(_thread, "remarks", None):
        remarks.warnings[code] = text
    elif code not in _warned_codes:
        _warned_codes.add(code)
        name = Path(path).name  # without the folders, which may be private: run.json stores the log
        logging.getLogger("fastcxr").warning(
            "FCX-%s %r: %s (logged once; other images may be affected)", code, name, text
        )
