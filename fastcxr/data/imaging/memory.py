"""Images in memory: arrays, Pillow images and encoded files, read by the same rules as files on a disk.

An array has gray values with 0 as black. Bytes are unchanged. Integers of more than 8 bits are scaled by their bit
depth: that of the training images, else the smallest usual one. Floats: 0..1 times 255, 0..255 unchanged, else
min..max. The content of a file is decoded as the file itself is.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from fastcxr.data.imaging.intensity import validate_size
from fastcxr.data.imaging.raster import PILLOW_ERRORS, from_colour, reject_transparent, values_to_gray
from fastcxr.errors import DataError, ImageError, require_type


@dataclass(frozen=True, eq=False)
class MemoryImage:
    """Pixels in memory, which a table of images holds in place of a file name. `name`: the text in its place."""

    name: str
    pixels: np.ndarray | Image.Image

    def __post_init__(self):
        if isinstance(self.pixels, np.ndarray):
            _validate_array(self.pixels, self.name)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class FileInMemory:
    """Content of an image file in memory, such as a PNG or a DICOM file.

    name: file name, by which a DICOM file without signature is recognized, as on a disk. content: all bytes.
    """

    name: str
    content: bytes

    def __post_init__(self):
        require_type("name", self.name, str, fix="Pass the name of the file")
        require_type("content", self.content, bytes, fix="Pass the bytes of the file, as Path(file).read_bytes()")

    def __str__(self) -> str:
        return self.name


def _validate_array(pixels: np.ndarray, name: str) -> None:
    if pixels.ndim != 2 or not pixels.size:
        fix = "Pass a list of gray arrays, one per image, or PIL.Image.fromarray(array) for an image in colour"
        raise DataError(f"{name} has the shape {pixels.shape}, expected (height, width)", fix, code="E128")
    if pixels.dtype.kind not in "uif":
        fix = "Convert it, for example with array.astype('uint8')"
        raise DataError(f"{name} has the type {pixels.dtype}, expected integers or floats", fix, code="E128")


def read_memory_image(image: MemoryImage, depth: int | None = None) -> np.ndarray:
    """Return the image as uint8, shape (height, width). Raises ImageError. `depth`: see `read_image`."""
    pixels = image.pixels
    if isinstance(pixels, Image.Image):
        pixels = _load(pixels, image.name)
        validate_size(image.name, *pixels.size)
        if not pixels.mode.startswith(("I", "F")):
            reject_transparent(pixels, image.name)
            return from_colour(pixels, image.name)
        pixels = np.asarray(pixels)
    validate_size(image.name, *pixels.shape[::-1])
    return values_to_gray(pixels, image.name, None, depth)


def _load(image: Image.Image, name: str) -> Image.Image:
    """Return the decoded image with its EXIF orientation applied; Pillow decodes a file on first use."""
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except PILLOW_ERRORS as error:
        raise ImageError(
            "the data of this Pillow image is corrupt", "Open the file again", path=name, code="E104"
        ) from error
