"""An open DICOM file comes in; the 8-bit gray picture that a viewer shows, or one tag of the header, goes out.

Only the tags named here are read, and no value that a person typed reaches an error or a log.
How stored values become gray levels stands in `fastcxr.data.imaging.voi_lut`.
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
from pydicom import Dataset, dcmread
from pydicom.datadict import keyword_dict, tag_for_keyword
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.pixels import get_decoder
from pydicom.pixels.utils import get_expected_length
from pydicom.tag import Tag
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    RLELossless,
)

from fastcxr.data.imaging.dicom_classes import format_sop_class, validate_sop_class, warn_gray_levels
from fastcxr.data.imaging.intensity import MAX_PIXELS, rescale_to_uint8, validate_size
from fastcxr.data.imaging.raster import from_colour
from fastcxr.data.imaging.sniff import HEAD_BYTES, may_be_dicom, open_file, suppress_decoder_warnings, warn_once
from fastcxr.data.imaging.voi_lut import find_clipped_end, stored_to_gray
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
    "Modality",
    "BodyPartExamined",
    "ViewPosition",
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
    "RTDOSE": "a radiotherapy dose",
    "RTIMAGE": "a radiotherapy image",
}
CHEST_BODY_PARTS = ("CHEST", "THORAX", "TORAX", "LUNG", "RIB", "PECHO")
LATERAL_VIEWS = ("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT")

MAX_INFLATED_BYTES = 4 * MAX_PIXELS  # bytes of a deflated file: the largest picture of 16 bits, twice
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # pydicom and the decoders give RGB for each
PILLOW_SYNTAXES = (JPEGBaseline8Bit, JPEG2000, JPEG2000Lossless)
UNPACK_12_BITS = "Convert it with `dcmdjpeg` of DCMTK, or `pip install pylibjpeg pylibjpeg-libjpeg` (GPL licence)"
UNDECODABLE_FIX = "Export it again; where other programs show it, `dcmdjpeg` or `gdcmconv --raw` unpack it"

# everything that pydicom raises for a damaged file; whatever else comes is a bug and must be seen
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
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_dicom(file: BinaryIO, path: str) -> np.ndarray:
    """The picture that a viewer shows, uint8, shape (height, width)."""
    with _convert_errors(path, "E122", "its header is damaged", "Export it again"):
        header = _read_header(file, path)
        _validate_modality(header, path)
        n_pixel_bytes = _count_pixel_bytes(header, file, path)
        validate_sop_class(header, path)
        _validate_required_tags(header, path)
        _validate_transfer_syntax(header, path)
        _validate_pixel_description(header, n_pixel_bytes, path)
        _check_bits(header, path)
        validate_size(path, header.Columns, header.Rows)
        warn_gray_levels(header, path)
    with _convert_errors(path, "E124", f"its pixel data cannot be decoded ({_format_syntax(header)})", UNDECODABLE_FIX):
        stored = _decode_pixels(file, header, path)
    with _convert_errors(path, "E122", "its window, rescale or lookup table is damaged", "Export it again"):
        return _show_colour(stored, header, path) if stored.ndim == 3 else _show_gray(stored, header, path)


def _show_colour(stored: np.ndarray, header: Dataset, path: str) -> np.ndarray:
    """Luma, by the rule for colour of all other formats; the standard knows no window for colour."""
    channels = stored if header.BitsStored == 8 else rescale_to_uint8(stored, 0, 2**header.BitsStored - 1)
    return from_colour(Image.fromarray(channels.astype(np.uint8)), path, ";16" if header.BitsStored > 8 else "")


def _show_gray(stored: np.ndarray, header: Dataset, path: str) -> np.ndarray:
    picture = stored_to_gray(stored, header)
    if end := find_clipped_end(picture, stored, header):
        text = f"its window or VOI LUT shows most of the image as {end}, so that detail is lost"
        warn_once("W210", path, f"{text}. Check WindowCenter and WindowWidth, or export it again")
    return picture


@contextmanager
def _convert_errors(path: str, code: str, problem: str, fix: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except PYDICOM_ERRORS:
        # from None: pydicom's messages quote values, and values may be a patient's
        raise ImageError(problem, fix, path=path, code=code) from None


def _read_header(file: BinaryIO, path: str) -> Dataset:
    """The needed tags, without pixels; `file` is left where the pixels begin."""
    _validate_deflated_size(file, path)
    header = dcmread(file, force=True, stop_before_pixels=True, specific_tags=HEADER_TAGS)
    if "SOPClassUID" not in header and "Rows" not in header:
        raise ImageError(
            "no DICOM image header in it", "Export it again as DICOM, or leave it out", path=path, code="E120"
        )
    if "TransferSyntaxUID" not in header.file_meta:  # without preamble nothing says it, and pydicom has guessed
        is_implicit, is_little_endian = header.original_encoding
        explicit_syntax = ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit_syntax
    return header


def _validate_deflated_size(file: BinaryIO, path: str) -> None:
    """A deflated megabyte can unpack to a gigabyte, and pydicom sets no limit."""
    read_preamble(file, force=True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            decompressor.decompress(file.read(), MAX_INFLATED_BYTES)
        except zlib.error:
            decompressor = None
        if decompressor and decompressor.unconsumed_tail:
            problem = f"unpacks to over {MAX_INFLATED_BYTES // 1_000_000} MB"
            raise ImageError(problem, "Save it smaller, or leave it out", path=path, code="E109")
        if not decompressor or not decompressor.eof:
            raise ImageError("its deflated data is damaged or cut off", "Copy it again", path=path, code="E124")
    file.seek(0)


def _validate_modality(header: Dataset, path: str) -> None:
    modality = str(header.get("Modality") or "").strip().upper()
    if modality in OTHER_MODALITIES:
        problem = f"{OTHER_MODALITIES[modality]}, not a chest radiograph (Modality {modality})"
        raise ImageError(problem, "Leave it out", path=path, code="E126")
    body_part = str(header.get("BodyPartExamined") or "").upper()
    view = str(header.get("ViewPosition") or "").strip().upper()
    is_other_part = body_part and not any(word in body_part for word in CHEST_BODY_PARTS)
    if is_other_part or view in LATERAL_VIEWS or modality not in RADIOGRAPH_MODALITIES:
        text = (
            "its header speaks of a lateral view, another body part or another device than a frontal chest radiograph"
        )
        warn_once("W207", path, f"{text}; it is read all the same")


def _count_pixel_bytes(header: Dataset, file: BinaryIO, path: str) -> float:
    """How many bytes follow the header; endless when deflated, as pydicom has read that to its end."""
    start = file.tell()
    n_left = file.seek(0, 2) - start
    if header.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian and "Rows" in header:
        return float("inf")
    if n_left <= 0:
        problem = f"no image in this DICOM (SOP class {format_sop_class(header)})"
        raise ImageError(problem, "Leave it out; if it should hold one, copy it again", path=path, code="E123")
    return n_left


def _validate_required_tags(header: Dataset, path: str) -> None:
    for name in REQUIRED_TAGS:
        if header.get(name) in (None, ""):
            problem = f"the DICOM header lacks {name} {Tag(tag_for_keyword(name))}"
            raise ImageError(problem, "Export it again", path=path, code="E122")


def _validate_pixel_description(header: Dataset, n_pixel_bytes: float, path: str) -> None:
    """Refuse fewer or other pixels than a radiograph has, before any is read."""
    frames = int(header.get("NumberOfFrames") or 1)
    n_expected_bytes = get_expected_length(header)
    if not header.file_meta.TransferSyntaxUID.is_encapsulated and n_pixel_bytes < n_expected_bytes:
        problem = f"truncated: {n_pixel_bytes:,} of {n_expected_bytes:,} bytes of pixel data"
        raise ImageError(problem, "Copy or export it again", path=path, code="E124")
    if frames > 1:
        problem, fix = f"{frames} frames in one DICOM", "Split it, one radiograph a file"
        raise ImageError(problem, fix, path=path, code="E108")
    photometric = str(header.PhotometricInterpretation)
    samples = 1 if photometric.startswith("MONOCHROME") else 3 if photometric in COLOURS else None
    if header.SamplesPerPixel != samples:
        problem, fix = "a kind of colour DICOM that cannot be read", "Export it in gray or RGB, or leave it out"
        raise ImageError(problem, fix, path=path, code="E127")


def _check_bits(header: Dataset, path: str) -> None:
    """Refuse stored bits outside of the allocated ones, and unused low bits in a codestream, which has none."""
    high, stored, allocated = header.get("HighBit"), header.BitsStored, header.BitsAllocated
    syntax, shift = header.file_meta.TransferSyntaxUID, _count_low_bits(header)
    is_plain = syntax == RLELossless or not syntax.is_encapsulated
    if shift and not (is_plain and 0 < shift <= allocated - stored):
        kind = "bits" if is_plain else "compressed bits"
        what = f"HighBit is {high}, which cannot be with {stored} of {allocated} {kind} stored"
        raise ImageError(what, "Export it again", path=path, code="E122")


def _count_low_bits(header: Dataset) -> int:
    """The number of unused bits below the stored ones: HighBit is the place of the highest stored bit, from 0."""
    high = header.get("HighBit")
    return 0 if high is None else int(high) + 1 - header.BitsStored


def _validate_transfer_syntax(header: Dataset, path: str) -> None:
    try:
        decodable = get_decoder(header.file_meta.TransferSyntaxUID).is_available
    except NotImplementedError:
        raise _make_decoder_error(header, path, "Export it again without compression") from None
    if not decodable:
        fix = '`pip install "fastcxr[dicom]"` installs one; or export it again without compression'
        raise _make_decoder_error(header, path, fix)


def _make_decoder_error(header: Dataset, path: str, fix: str) -> ImageError:
    problem = f"compressed as {_format_syntax(header)}, for which no decoder is installed"
    return ImageError(problem, fix, path=path, code="E125")


def _format_syntax(header: Dataset) -> str:
    uid = header.file_meta.TransferSyntaxUID
    return uid.name if uid.name != uid else "an unknown transfer syntax"


def _decode_pixels(file: BinaryIO, header: Dataset, path: str) -> np.ndarray:
    """Stored values, as the decoder gives them, shape (height, width)."""
    file.seek(0)
    dataset = dcmread(file, force=True, specific_tags=[*HEADER_TAGS, *PIXEL_TAGS])
    syntax = dataset.file_meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
    if syntax in PILLOW_SYNTAXES:
        _reject_size_mismatch(dataset)
    elif not syntax.is_encapsulated and len(dataset.PixelData) > get_expected_length(dataset) + 1:
        warn_once("W206", path, "more pixel data than its header claims; the rest is left unread")
    low_bits = _count_low_bits(header)
    dataset.BitsStored += low_bits  # pydicom ignores HighBit, and clears only what lies above BitsStored
    try:
        return dataset.pixel_array >> low_bits if low_bits else dataset.pixel_array
    except RuntimeError:
        if syntax == JPEGExtended12Bit and header.BitsStored > 8 and not _has_decoder_for_12_bits():
            raise _make_decoder_error(header, path, UNPACK_12_BITS) from None
        raise


def _has_decoder_for_12_bits() -> bool:
    """Whether pylibjpeg-libjpeg is installed: Pillow and GDCM take JPEG Extended with 8 bits only."""
    return "pylibjpeg" in get_decoder(JPEGExtended12Bit).available_plugins


def _reject_size_mismatch(dataset: Dataset) -> None:
    """A frame may claim another size than the header, and would be unpacked before anybody compares."""
    with Image.open(
        BytesIO(get_frame(dataset.PixelData, 0, number_of_frames=1)), formats=("JPEG", "JPEG2000")
    ) as frame:
        if frame.size != (dataset.Columns, dataset.Rows):
            raise ValueError("frame and header differ in size")


def read_tag(path: str | Path, tag: str = "PatientID") -> str | None:
    """The value of one header tag; None when it is empty or the file no readable DICOM (`read_image` says why)."""
    number = _parse_tag(tag)
    try:
        with suppress_decoder_warnings(), open_file(path) as file:
            head = file.read(HEAD_BYTES)
            return _read_tag_value(file, str(path), number) if may_be_dicom(path, head) else None
    except (ImageError, *PYDICOM_ERRORS):
        return None


def read_tags(path: str | Path, tags: Iterable[str]) -> dict[str, str | None]:
    """The values of several header tags, the file opened once; None as in `read_tag`."""
    numbers = {tag: _parse_tag(tag) for tag in tags}
    try:
        with suppress_decoder_warnings(), open_file(path) as file:
            head = file.read(HEAD_BYTES)
            header = (
                _read_selected_tags(file, str(path), list(numbers.values())) if may_be_dicom(path, head) else Dataset()
            )
            return {tag: _format_tag_value(header, number) for tag, number in numbers.items()}
    except (ImageError, *PYDICOM_ERRORS):
        return dict.fromkeys(numbers)


def _read_tag_value(file: BinaryIO, path: str, number: int) -> str | None:
    return _format_tag_value(_read_selected_tags(file, path, [number]), number)


def _read_selected_tags(file: BinaryIO, path: str, numbers: list[int]) -> Dataset:
    file.seek(0)
    _validate_deflated_size(file, path)
    return dcmread(file, force=True, stop_before_pixels=True, specific_tags=[*numbers, "SOPClassUID"])


def _format_tag_value(header: Dataset, number: int) -> str | None:
    if "SOPClassUID" not in header or number not in header or header[number].VR == "SQ":
        return None
    value = header[number].value
    return None if value is None else str(value).strip() or None


def _parse_tag(tag: str) -> int:
    """The number of a tag named as `PatientID`, `0010,0020` or `(0010,0020)`."""
    number = re.fullmatch(r"\(?([0-9a-fA-F]{4}),? ?([0-9a-fA-F]{4})\)?", tag.strip())
    if number:
        return int(number[1] + number[2], 16)
    found = tag_for_keyword(tag.strip())
    if found is None:
        similar = get_close_matches(tag, keyword_dict, n=1)
        hint = f"Did you mean {similar[0]}?" if similar else "Write it like PatientID or 0010,0020"
        raise RecipeError(f"no DICOM tag called {tag!r}", hint)
    return found
