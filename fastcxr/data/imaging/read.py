"""One file of any kind comes in; one 8-bit grayscale array, or an error that names the file, goes out.

The rules of `read_image`, which training and prediction share:

- The content decides what a file is, never its name. PNG, JPEG, TIFF, BMP and DICOM are read, nothing else is tried.
- 8-bit gray stays as it is. Colour becomes ITU-R 601 luma, so equal channels come out exact.
- Integers of more than 8 bits: the full range of their bit depth becomes 0..255. The depth is the one that the file
  states (sBIT of PNG; BitsPerSample or MaxSampleValue of TIFF), else the one given, which training decides once for
  each source (`fastcxr.data.bit_depth`), else, with a warning, the smallest of 8, 10, 12, 14 and 16 bits that holds
  98 % of the pixels. Larger or negative values: min..max. Floats: 0..1 times 255, 0..255 as they are, else min..max.
- A picture lies as its EXIF orientation says. A TIFF that counts white as zero, and MONOCHROME1, are turned positive.
- DICOM: modality table or rescale, then table or first window of interest, else the full range of BitsStored; see
  `fastcxr.data.imaging.voi_lut`.
- `cohort.h5#17` is a picture of a packed cohort, and was read by these rules when it was packed.
- Sizes are checked in the header, before any pixel is decoded. Nothing is guessed: a damaged file is an ImageError.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from fastcxr.data.imaging.raster import read_raster
from fastcxr.data.imaging.sniff import (
    DICOM_SUFFIXES,
    HEAD_BYTES,
    Remarks,
    collect_remarks,
    detect_format,
    log_counted_warnings,
    make_content_error,
    may_be_dicom,
    open_file,
    suppress_decoder_warnings,
)
from fastcxr.data.readers.hdf5 import parse_reference, read_packed_image
from fastcxr.errors import ImageError
from fastcxr.io.cpus import count_cpus

if TYPE_CHECKING:
    from fastcxr.progress.base import Progress

READER_VERSION = 4  # raise it when the pixels of any reader or of fit_square change: kept pictures are decoded again
BATCH_FILES = 1024  # files handed to the threads at once, so that a cohort of a million is no queue of a million


def read_image(path: str | Path, depth: int | None = None) -> np.ndarray:
    """The picture that a radiologist would see, uint8, shape (height, width); black is 0.

    `depth`: bits of an image deeper than 8 bits whose file states no depth.
    """
    path = str(path)
    if parse_reference(path):
        image = read_packed_image(path)
        _reject_blank(image, path)
        return image
    with open_file(path) as file:
        return read_open_image(file, path, depth)


def read_with_remarks(path: str | Path, depth: int | None = None) -> tuple[np.ndarray, Remarks]:
    """The picture as `read_image` gives it, and what was remarked on it, which is then not logged."""
    with collect_remarks() as remarks:
        return read_image(path, depth), remarks


def read_open_image(file: BinaryIO, path: str, depth: int | None = None) -> np.ndarray:
    """The picture in a file that is open at its start, as `read_image` gives it; `path` is its name."""
    with suppress_decoder_warnings():
        head = file.read(HEAD_BYTES)
        file.seek(0)
        is_dicom = _is_dicom(path, head)
        image = _read_dicom(file, path, head) if is_dicom else read_raster(file, path, head, depth)
    _reject_blank(image, path)
    return np.ascontiguousarray(image)


def _is_dicom(path: str, head: bytes) -> bool:
    suffix, kind = Path(path).suffix.lower(), detect_format(head)
    if kind and kind != "DICOM" and suffix in DICOM_SUFFIXES:
        raise ImageError(
            f"a {kind} inside a {suffix} name",
            f"Export it again as DICOM, or rename it to .{kind.lower()} if that is what it should be",
            path=path,
            code="E121",
        )
    return may_be_dicom(path, head)


def _read_dicom(file: io.BufferedIOBase, path: str, head: bytes) -> np.ndarray:
    from fastcxr.data.imaging.dicom import (
        read_dicom,  # pydicom takes a quarter of a second, and most cohorts have no DICOM
    )

    try:
        return read_dicom(file, path)
    except ImageError as error:
        if error.code == "E120" and Path(path).suffix.lower() not in DICOM_SUFFIXES and detect_format(head) != "DICOM":
            raise make_content_error(path, head) from None  # neither name nor content spoke of DICOM
        raise


def _reject_blank(image: np.ndarray, path: str) -> None:
    counts = np.array(Image.fromarray(image).histogram(), dtype=float)  # a third of the time of picture.std()
    levels = np.arange(256)
    mean = counts @ levels / counts.sum()
    if counts @ (levels - mean) ** 2 / counts.sum() < 1:  # the variance: a standard deviation under one gray level
        problem, fix = f"blank image, all about {mean:.0f} of 255", "Export it again, or leave it out"
        raise ImageError(problem, fix, path=path, code="E111")


def check_images(files: Sequence[str | Path], progress: "Progress | None" = None) -> list[ImageError]:
    """Decode every file, on all cores; the errors of those that cannot be read, in the order of `files`."""
    found = examine_images(files, [None] * len(files), progress)
    log_counted_warnings((str(file), one) for file, one in zip(files, found, strict=True) if isinstance(one, Remarks))
    return [one for one in found if isinstance(one, ImageError)]


def examine_images(
    files: Sequence[str | Path], depths: Sequence[int | None], progress: "Progress | None" = None
) -> list[Remarks | ImageError]:
    """Decode every file, on all cores: what was remarked on each, or the error of one that cannot be read."""
    files, found = list(files), []
    watched = progress.bar(len(files), "checking images") if progress else nullcontext()
    with ThreadPoolExecutor(count_cpus()) as pool, watched as bar:
        for start in range(0, len(files), BATCH_FILES):
            for one in pool.map(_examine, files[start : start + BATCH_FILES], depths[start : start + BATCH_FILES]):
                found.append(one)
                if bar:
                    bar.advance()
    return found


def _examine(path: str | Path, depth: int | None) -> Remarks | ImageError:
    try:
        return read_with_remarks(path, depth)[1]
    except ImageError as error:
        # a fresh one: tracebacks of this one and its cause would keep the decoded pixels alive
        return ImageError(error.problem, error.fix, path=error.path, code=error.code)


def fit_square(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture, centred on a black square, shape (size, size); its aspect is kept."""
    height, width = image.shape
    scale = size / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = np.zeros((size, size), np.uint8)
    left, top = (size - shape[0]) // 2, (size - shape[1]) // 2
    canvas[top : top + shape[1], left : left + shape[0]] = _resize(image, shape)
    return canvas


def _resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    # Pillow widens the triangle when it shrinks, so nothing is skipped (no aliasing); unlike bicubic and Lanczos it has
    # no negative lobes, so markers and collimator edges get no halo; and it is the one that also enlarges smoothly
    return np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR))


def encode_thumbnail_jpeg(image: np.ndarray, size: int) -> bytes:
    """A small JPEG of an array, its longer side at most `size`; freshly encoded, so it carries no metadata."""
    height, width = image.shape
    scale = min(1, size / max(height, width))
    small = _resize(image, (max(1, round(width * scale)), max(1, round(height * scale))))
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()
