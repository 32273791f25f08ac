"""Read the pixels of a DICOM file as an 8-bit gray image, and single header tags.

Only the tags listed here are read. No value of a text tag is written to an error or a log: it may identify a patient.
See `fastcxr.data.imaging.voi_lut` for the conversion of stored values to gray levels.
"""

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from pydicom import Dataset, dcmread, uid
from pydicom.datadict import keyword_dict, tag_for_keyword
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import get_expected_length
from pydicom.tag import BaseTag, Tag

from fastcxr.data.imaging.dicom_classes import (
    format_sop_class,
    reject_own_results,
    validate_sop_class,
    warn_burned_in,
    warn_gray_levels,
)
from fastcxr.data.imaging.intensity import MAX_PIXELS, rescale_to_uint8, validate_size
from fastcxr.data.imaging.raster import from_colour
from fastcxr.data.imaging.sniff import HEAD_BYTES, may_be_dicom, open_file, suppress_decoder_warnings, warn_once
from fastcxr.data.imaging.voi_lut import MIN_USED_FRACTION, find_clipped_end, stored_to_gray, uses_little_range
from fastcxr.errors import ImageError, RecipeError

REQUIRED_TAGS = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
)
OPTIONAL_TAGS = (
    "SOPClassUID",
    "Manufacturer",
    "Modality",
    "BodyPartExamined",
    "ViewPosition",
    "BurnedInAnnotation",
    "PresentationIntentType",
    "PresentationLUTShape",
    "NumberOfFrames",
    "HighBit",
    "PlanarConfiguration",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
)
HEADER_TAGS = [*REQUIRED_TAGS, *OPTIONAL_TAGS]
PIXEL_TAGS = ["PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"]

RADIOGRAPH_MODALITIES = ("CR", "DX", "RG", "DR", "")  # a missing modality is common in exports for research
OTHER_MODALITIES = {
    "CT": "computed tomography",
    "MR": "magnetic resonance",
    "PT": "positron emission tomography",
    "NM": "nuclear medicine",
    "US": "ultrasound",
    "IVUS": "ultrasound",
    "MG": "mammography",
    "IO": "a dental image",
    "PX": "a dental image",
    "ES": "endoscopy",
    "XC": "a photograph",
    "SM": "microscopy",
    "OP": "an eye image",
    "OPT": "an eye image",
    "ECG": "an electrocardiogram",
    "SEG": "a segmentation",
    "SR": "a structured report",
    "KO": "a list of key images",
    "PR": "a presentation state",
    "DOC": "a document",
    "RTDOSE": "a radiotherapy dose",
    "RTIMAGE": "a radiotherapy image",
}
CHEST_BODY_PARTS = ("CHEST", "THORAX", "TORAX", "LUNG", "RIB", "PECHO")
LATERAL_VIEWS = ("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT")

MAX_INFLATED_BYTES = 4 * MAX_PIXELS  # twice the size of the largest accepted 16-bit image
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom and the decoders convert each to RGB
PILLOW_SYNTAXES = (uid.JPEGBaseline8Bit, uid.JPEG2000, uid.JPEG2000Lossless)
UNPACK_12_BITS = "Convert it with `dcmdjpeg` of DCMTK, or `pip install pylibjpeg pylibjpeg-libjpeg` (GPL licence)"
UNDECODABLE_FIX = "Export it again, or decompress it with `dcmdjpeg` or `gdcmconv --raw`"

# the exceptions that pydicom raises for a damaged file; any other exception is a bug and is not caught
PYDICOM_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    RuntimeError,  # also NotImplementedError
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_dicom(file: BinaryIO, path: str) -> np.ndarray:
    """Return the image that a viewer shows, uint8, shape (height, width). Raises ImageError."""
    with _convert_errors(path, "E122", "damaged DICOM header", "Export it again"):
        header = _read_header(file, path)
        reject_own_results(header, path)
        _validate_modality(header, path)
        n_pixel_bytes = _count_pixel_bytes(header, file, path)
        validate_sop_class(header, path)
        _validate_required_tags(header, path)
        _validate_transfer_syntax(header, path)
        _validate_pixel_description(header, n_pixel_bytes, path)
        _check_bits(header, path)
        validate_size(path, header.Columns, header.Rows)
        warn_gray_levels(header, path)
        warn_burned_in(header, path)
    with _convert_errors(path, "E124", f"the pixel data cannot be decoded ({_format_syntax(header)})", UNDECODABLE_FIX):
        stored = _decode_pixels(file, header, path)
    with _convert_errors(path, "E122", "damaged window, rescale or lookup table", "Export it again"):
        return _show_colour(stored, header, path) if stored.ndim == 3 else _show_gray(stored, header, path)


def _show_colour(stored: np.ndarray, header: Dataset, path: str) -> np.ndarray:
    # DICOM defines no window for colour; as in all other formats, the luma is used
    channels = stored if header.BitsStored == 8 else rescale_to_uint8(stored, 0, 2**header.BitsStored - 1)
    return from_colour(Image.fromarray(channels.astype(np.uint8)), path, ";16" if header.BitsStored > 8 else "")


def _show_gray(stored: np.ndarray, header: Dataset, path: str) -> np.ndarray:
    image = stored_to_gray(stored, header)
    if end := find_clipped_end(image, stored, header):
        text = f"the window or VOI LUT shows most of the image as {end}, and detail is lost"
        warn_once("W210", path, f"{text}. Check WindowCenter and WindowWidth, or export it again")
    if uses_little_range(image, stored, header):
        text = f"no window, and the values use less than {MIN_USED_FRACTION:.1%} of the range of BitsStored"
        warn_once("W216", path, f"{text}: the image has little contrast. Export it with a window or correct BitsStored")
    return image


@contextmanager
def _convert_errors(path: str, code: str, problem: str, fix: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except PYDICOM_ERRORS:
        # from None: the messages of pydicom quote header values, which may identify a patient
        raise ImageError(problem, fix, path=path, code=code) from None


def _read_header(file: BinaryIO, path: str) -> Dataset:
    """Read the required tags; `file` is then positioned at the start of the pixel data."""
    _validate_deflated_size(file, path)
    header = dcmread(file, force=True, stop_before_pixels=True, specific_tags=HEADER_TAGS)
    if "SOPClassUID" not in header and "Rows" not in header:
        fix = "Export it again as DICOM, or leave it out"
        raise ImageError("no DICOM image header", fix, path=path, code="E120")
    if "TransferSyntaxUID" not in header.file_meta:  # a file without preamble: pydicom has detected the encoding
        is_implicit, is_little_endian = header.original_encoding
        explicit_syntax = uid.ExplicitVRLittleEndian if is_little_endian else uid.ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if is_implicit else explicit_syntax
    return header


def _validate_deflated_size(file: BinaryIO, path: str) -> None:
    # one deflated megabyte may decompress to a gigabyte, and pydicom has no limit
    read_preamble(file, force=True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        damaged = ImageError("damaged or truncated deflated data", "Copy it again", path=path, code="E124")
        decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            decompressor.decompress(file.read(), MAX_INFLATED_BYTES)
        except zlib.error:
            raise damaged from None
        if decompressor.unconsumed_tail:
            problem = f"decompresses to more than {MAX_INFLATED_BYTES // 1_000_000} MB"
            raise ImageError(problem, "Save it smaller, or leave it out", path=path, code="E109")
        if not decompressor.eof:
            raise damaged
    file.seek(0)


def _validate_modality(header: Dataset, path: str) -> None:
    modality = str(header.get("Modality") or "").strip().upper()
    if modality in OTHER_MODALITIES:
        problem = f"{OTHER_MODALITIES[modality]}, not a chest radiograph (Modality {modality})"
        raise ImageError(problem, "Leave it out", path=path, code="E126")
    body_part = str(header.get("BodyPartExamined") or "").upper()
    view = str(header.get("ViewPosition") or "").strip().upper()
    is_other_part = bool(body_part) and not any(word in body_part for word in CHEST_BODY_PARTS)
    found = {
        "a lateral view": view in LATERAL_VIEWS,
        "another body part": is_other_part,
        "another device": modality not in RADIOGRAPH_MODALITIES,
    }
    if any(found.values()):
        text = f"the header names {' and '.join(name for name, is_found in found.items() if is_found)}"
        warn_once("W207", path, f"{text}; the file is read as a frontal chest radiograph")


def _count_pixel_bytes(header: Dataset, file: BinaryIO, path: str) -> float:
    """Return the number of bytes after the header; infinity for a deflated file, which pydicom has read to its end."""
    start = file.tell()
    n_left = file.seek(0, 2) - start
    if header.file_meta.TransferSyntaxUID == uid.DeflatedExplicitVRLittleEndian and "Rows" in header:
        return float("inf")
    if n_left <= 0:
        problem = f"no pixel data in this DICOM (SOP class {format_sop_class(header)})"
        raise ImageError(problem, "Leave it out, or copy it again", path=path, code="E123")
    return n_left


def _validate_required_tags(header: Dataset, path: str) -> None:
    for name in REQUIRED_TAGS:
        if header.get(name) in (None, ""):
            problem = f"the DICOM header lacks {name} {Tag(name)}"
            raise ImageError(problem, "Export it again", path=path, code="E122")


def _validate_pixel_description(header: Dataset, n_pixel_bytes: float, path: str) -> None:
    """Raise ImageError for missing pixel data, several frames or an unsupported colour space, before decoding."""
    frames = int(header.get("NumberOfFrames") or 1)
    n_expected_bytes = get_expected_length(header)
    if not header.file_meta.TransferSyntaxUID.is_encapsulated and n_pixel_bytes < n_expected_bytes:
        problem = f"truncated: {n_pixel_bytes:,} of {n_expected_bytes:,} bytes of pixel data"
        raise ImageError(problem, "Copy or export it again", path=path, code="E124")
    if frames > 1:
        raise ImageError(f"{frames} frames in one DICOM", "Save one radiograph per file", path=path, code="E108")
    photometric = str(header.PhotometricInterpretation)
    samples = 1 if photometric.startswith("MONOCHROME") else 3 if photometric in COLOURS else None
    if header.SamplesPerPixel != samples:
        fix = "Export it in gray or RGB, or leave it out"
        raise ImageError("unsupported colour space", fix, path=path, code="E127")


def _check_bits(header: Dataset, path: str) -> None:
    """Raise ImageError for stored bits outside the allocated ones, and for unused low bits in a codestream."""
    high, stored, allocated = header.get("HighBit"), header.BitsStored, header.BitsAllocated
    syntax, shift = header.file_meta.TransferSyntaxUID, _count_low_bits(header)
    is_plain = syntax == uid.RLELossless or not syntax.is_encapsulated
    if shift and not (is_plain and 0 < shift <= allocated - stored):
        unit = "bits" if is_plain else "compressed bits"
        problem = f"HighBit is {high}, which contradicts {stored} of {allocated} {unit} stored"
        raise ImageError(problem, "Export it again", path=path, code="E122")


def _count_low_bits(header: Dataset) -> int:
    """Return the number of unused bits below the stored ones; HighBit is the 0-based position of the highest one."""
    high = header.get("HighBit")
    return 0 if high is None else int(high) + 1 - header.BitsStored


def _validate_transfer_syntax(header: Dataset, path: str) -> None:
    try:
        decodable = get_decoder(header.file_meta.TransferSyntaxUID).is_available
    except NotImplementedError:
        raise _make_decoder_error(header, path, "Export it again without compression") from None
    if not decodable:
        fix = 'Run `pip install "fastcxr[dicom]"`, or export it again without compression'
        raise _make_decoder_error(header, path, fix)


def _make_decoder_error(header: Dataset, path: str, fix: str) -> ImageError:
    problem = f"compressed as {_format_syntax(header)}, for which no decoder is installed"
    return ImageError(problem, fix, path=path, code="E125")


def _format_syntax(header: Dataset) -> str:
    syntax = header.file_meta.TransferSyntaxUID
    return syntax.name if syntax.name != syntax else "an unknown transfer syntax"


def _decode_pixels(file: BinaryIO, header: Dataset, path: str) -> np.ndarray:
    """Return stored values, shape (height, width) for gray and (height, width, 3) for colour."""
    file.seek(0)
    dataset = dcmread(file, force=True, specific_tags=[*HEADER_TAGS, *PIXEL_TAGS])
    syntax = dataset.file_meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
    if syntax in PILLOW_SYNTAXES:
        _reject_size_mismatch(dataset)
    elif not syntax.is_encapsulated and len(dataset.PixelData) > get_expected_length(dataset) + 1:
        warn_once("W206", path, "more pixel data than the header states; the rest is ignored")
    low_bits = _count_low_bits(header)
    dataset.BitsStored += low_bits  # pydicom ignores HighBit, and clears only bits above BitsStored
    try:
        return dataset.pixel_array >> low_bits if low_bits else dataset.pixel_array
    except RuntimeError:
        # Pillow and GDCM decode JPEG Extended with 8 bits only; pylibjpeg-libjpeg decodes 12 bits
        is_12_bit = syntax == uid.JPEGExtended12Bit and header.BitsStored > 8
        if is_12_bit and "pylibjpeg" not in get_decoder(syntax).available_plugins:
            raise _make_decoder_error(header, path, UNPACK_12_BITS) from None
        raise


def _reject_size_mismatch(dataset: Dataset) -> None:
    # a frame may have another size than the header states, and would be decoded before the sizes are compared
    frame_bytes = get_frame(dataset.PixelData, 0, number_of_frames=1)
    with Image.open(BytesIO(frame_bytes), formats=("JPEG", "JPEG2000")) as frame:
        if frame.size != (dataset.Columns, dataset.Rows):
            raise ValueError("frame and header differ in size")


def read_tag(path: str | Path, tag: str = "PatientID") -> str | None:
    """Return the value of one header tag, or None if it is empty or the file is not a readable DICOM."""
    return _read_tags(path, [tag])[tag]


def read_tags(path: str | Path, tags: Iterable[str]) -> dict[str, str | None]:
    """Return the values of several header tags with one opening of the file; None as in `read_tag`."""
    return _read_tags(path, tags)


def _read_tags(path: str | Path, tags: Iterable[str]) -> dict[str, str | None]:
    numbers = {tag: _parse_tag(tag) for tag in tags}
    header = read_header(path, numbers.values())
    return {tag: None if header is None else _format_tag_value(header, number) for tag, number in numbers.items()}


def read_header(path: str | Path, tags: Iterable[str | BaseTag]) -> Dataset | None:
    """Return the header with these tags and the SOP class, or None if the file is not a readable DICOM.

    A tag with a value that pydicom cannot decode is left out.
    """
    try:
        with suppress_decoder_warnings(), open_file(path) as file:
            if not may_be_dicom(path, file.read(HEAD_BYTES)):
                return None
            file.seek(0)
            _validate_deflated_size(file, str(path))
            selected_tags = [*map(Tag, tags), Tag("SOPClassUID")]
            header = dcmread(file, force=True, stop_before_pixels=True, specific_tags=selected_tags)
            for tag in list(header.keys()):
                try:
                    _ = header[tag]  # pydicom decodes a value when it is used first
                except PYDICOM_ERRORS:
                    del header[tag]
            return header
    except (ImageError, *PYDICOM_ERRORS):
        return None


def _format_tag_value(header: Dataset, number: BaseTag) -> str | None:
    if "SOPClassUID" not in header or number not in header or header[number].VR == "SQ":
        return None
    value = header[number].value
    return None if value is None else str(value).strip() or None


def _parse_tag(tag: str) -> BaseTag:
    """Return the tag named as `PatientID`, `0010,0020` or `(0010,0020)`."""
    number = re.fullmatch(r"\(?([0-9a-fA-F]{4}),? ?([0-9a-fA-F]{4})\)?", tag.strip())
    if number:
        return Tag(int(number[1] + number[2], 16))
    found = tag_for_keyword(tag.strip())
    if found is None:
        similar = get_close_matches(tag, keyword_dict, n=1)
        fix = f"Did you mean {similar[0]}?" if similar else "Write it as PatientID or 0010,0020"
        raise RecipeError(f"unknown DICOM tag {tag!r}", fix)
    return Tag(found)
