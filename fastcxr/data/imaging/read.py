"""Read an image file of any supported format as an 8-bit gray array, for training and prediction alike.

Rules of `read_image`:

- The content determines the format, not the file name. PNG, JPEG, TIFF, BMP and DICOM are supported.
- 8-bit gray levels are unchanged. Colour is converted to ITU-R 601 luma; equal channels are therefore exact.
- Integers of more than 8 bits: the full range of the bit depth is scaled to 0..255. The depth is the one that the file
  states (sBIT of PNG; BitsPerSample or MaxSampleValue of TIFF), else the given one, which training determines once for
  each source (`fastcxr.data.bit_depth`), else, with a warning, the smallest of 8, 10, 12, 14 and 16 bits that holds
  98 % of the pixels. Larger or negative values: min..max. Floats: 0..1 times 255, 0..255 unchanged, else min..max.
- The EXIF orientation is applied. TIFF files with white as zero and MONOCHROME1 are inverted.
- DICOM: modality LUT or rescale, then VOI LUT or first window, else the full range of BitsStored; see
  `fastcxr.data.imaging.voi_lut`.
- Arrays, Pillow images and files in memory: see `fastcxr.data.imaging.memory`.
- `cohort.h5#17` is an image of a packed dataset, to which the rules were applied when it was packed.
- Sizes are checked in the header before any pixel is decoded. A damaged file raises an ImageError.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from fastcxr.data.imaging.memory import FileInMemory, MemoryImage, read_memory_image
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
from fastcxr.errors import ImageError, require_type
from fastcxr.io.cpus import count_cpus

if TYPE_CHECKING:
    from fastcxr.progress.base import Progress

READER_VERSION = 5  # increase it if pixels or warnings of any reader change: cached images become invalid
BATCH_FILES = 1024  # files submitted to the threads at once, to limit the queue


def read_image(path: str | Path | MemoryImage | FileInMemory, depth: int | None = None) -> np.ndarray:
    """Return an image as uint8, shape (height, width), with 0 as black. Raises ImageError.

    Args:
        path: The file, or a file or an image in memory.
        depth: Bits per pixel of an image with more than 8 bits whose file states no depth.
    """
    if isinstance(path, MemoryImage):
        image = read_memory_image(path, depth)
        _reject_blank(image, path.name)
        return image
    if isinstance(path, FileInMemory):
        return read_open_image(io.BytesIO(path.content), path.name, depth)
    require_type("path", path, str, Path)
    path = str(path)
    if parse_reference(path):
        image = read_packed_image(path)
        _reject_blank(image, path)
        return image
    with open_file(path) as file:
        return read_open_image(file, path, depth)


def read_with_remarks(path: str | Path, depth: int | None = None) -> tuple[np.ndarray, Remarks]:
    """Return the image of `read_image` and the remarks on it, which are not logged."""
    with collect_remarks() as remarks:
        return read_image(path, depth), remarks


def read_open_image(file: BinaryIO, path: str, depth: int | None = None) -> np.ndarray:
    """Return the image of a file that is open at its start, as `read_image` does; `path` is its name."""
    with suppress_decoder_warnings():
        head = file.read(HEAD_BYTES)
        file.seek(0)
        is_dicom = _is_dicom(path, head)
        image = _read_dicom(file, path, head) if is_dicom else read_raster(file, path, head, depth)
    _reject_blank(image, path)
    return np.ascontiguousarray(image)


def _is_dicom(path: str, head: bytes) -> bool:
    suffix, file_format = Path(path).suffix.lower(), detect_format(head)
    if file_format and file_format != "DICOM" and suffix in DICOM_SUFFIXES:
        fix = f"Export it again as DICOM, or rename it to .{file_format.lower()}"
        raise ImageError(f"{file_format} content in a {suffix} file", fix, path=path, code="E121")
    return may_be_dicom(path, head)


def _read_dicom(file: BinaryIO, path: str, head: bytes) -> np.ndarray:
    # the import of pydicom takes a quarter of a second, and most datasets contain no DICOM
    from fastcxr.data.imaging.dicom import read_dicom

    try:
        return read_dicom(file, path)
    except ImageError as error:
        if error.code == "E120" and Path(path).suffix.lower() not in DICOM_SUFFIXES and detect_format(head) != "DICOM":
            raise make_content_error(path, head) from None  # neither the name nor the signature is that of DICOM
        raise


def _reject_blank(image: np.ndarray, path: str) -> None:
    counts = np.array(Image.fromarray(image).histogram(), dtype=float)  # three times faster than image.std()
    levels = np.arange(256)
    mean = counts @ levels / counts.sum()
    if counts @ (levels - mean) ** 2 / counts.sum() < 1:  # the variance, in squared gray levels
        problem = f"blank image, all pixels near gray level {mean:.0f} of 255"
        raise ImageError(problem, "Export it again, or leave it out", path=path, code="E111")


def check_images(files: Sequence[str | Path], progress: "Progress | None" = None) -> list[ImageError]:
    """Decode all files on all cores, and return the errors of those that cannot be read, in the order of `files`."""
    found = examine_images(files, [None] * len(files), progress)
    log_counted_warnings((str(file), one) for file, one in zip(files, found, strict=True) if isinstance(one, Remarks))
    return [one for one in found if isinstance(one, ImageError)]


def examine_images(
    files: Sequence[str | Path], depths: Sequence[int | None], progress: "Progress | None" = None
) -> list[Remarks | ImageError]:
    """Decode all files on all cores, and return the remarks on each image, or the error of an unreadable file."""
    files, found = list(files), []
    progress_bar = progress.bar(len(files), "checking images") if progress else nullcontext()
    with ThreadPoolExecutor(count_cpus()) as pool, progress_bar as bar:
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
        return copy_error(error)


def copy_error(error: ImageError) -> ImageError:
    """Return the error without its traceback and cause, which keep the decoded pixels in memory."""
    return ImageError(error.problem, error.fix, path=error.path, code=error.code)


def fit_square(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image, centred on a black background of shape (size, size), without changing its aspect ratio."""
    height, width = image.shape
    scale = size / max(height, width)
    shape = max(1, round(height * scale)), max(1, round(width * scale))
    canvas = np.zeros((size, size), np.uint8)
    top, left = (size - shape[0]) // 2, (size - shape[1]) // 2
    canvas[top : top + shape[0], left : left + shape[1]] = _resize(image, shape)
    return canvas


def _resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    # Pillow's triangle filter averages all pixels when it shrinks an image: no aliasing. Unlike bicubic and Lanczos it
    # has no negative lobes: no halo at markers and collimator edges
    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def encode_thumbnail_jpeg(image: np.ndarray, size: int) -> bytes:
    """Return an image as a JPEG without metadata, its longer side at most `size` pixels."""
    height, width = image.shape
    scale = min(1, size / max(height, width))
    small = _resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()
