"""Convert the stored values of a DICOM to 8-bit gray levels according to its header.

Order of the steps: modality LUT or rescale; VOI LUT, else the first window; scaling to 0..255; inversion of
MONOCHROME1; padding to black. A window is scaled from its own range. Without VOI LUT and window, 8-bit values are
unchanged. For deeper values the full range of BitsStored after the modality transform is scaled to 0..255, which
preserves the ratio of two exposures. Values of more than 16 bits are scaled from their minimum to their maximum,
without padding.

pydicom.pixels does not replace this module. `apply_modality_lut` rejects tables of 9 to 15 bits, and ignores a slope
without an intercept. `apply_voi` truncates rescaled values, wraps around with 8-bit tables, and rejects such tables as
bytes. `apply_windowing` rounds some values of LINEAR_EXACT windows and of fractional centres differently, and rejects
unknown functions and LINEAR widths below 1. Its results are equal for other windows, SIGMOID and tables of 16 bits.
"""

import numpy as np
from PIL import Image
from pydicom import Dataset

from fastcxr.data.imaging.intensity import apply_lookup_table, find_full_range, rescale_to_uint8

MAX_CLIPPED_FRACTION = 0.5  # of the pixels of an image
MIN_USED_FRACTION = 1 / 8  # of the range, between percentiles 1 and 99: 12-bit values in 16 bits use 1/16
MAX_DETECTOR_BITS = 16  # values with more bits are computed, and do not use their range


def stored_to_gray(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Return stored values as gray levels, uint8, of the same shape."""
    padding = _find_padding(stored, header)
    visible = stored if padding is None else stored[~padding]
    if not visible.size:
        return np.zeros(stored.shape, np.uint8)
    low, high = int(visible.min()), int(visible.max())
    if high - low < 2**16:  # one table entry per value instead of one result per pixel: a tenth of time and memory
        image = apply_lookup_table(stored, _values_to_gray(np.arange(low, high + 1), header), low)
    else:
        image = _values_to_gray(stored, header)
    if header.PhotometricInterpretation == "MONOCHROME1":
        image = 255 - image
    return image if padding is None else np.where(padding, np.uint8(0), image)


def find_clipped_end(image: np.ndarray, stored: np.ndarray, header: Dataset) -> str | None:
    """Return "white" or "black" if the window or VOI LUT clips most pixels to it although their stored values differ.

    Pixels with the lowest or highest stored value do not count, because a border has one of them.
    """
    if not header.get("VOILUTSequence") and _read_window(header) is None:
        return None
    padding = _find_padding(stored, header)
    kept = np.ones(stored.shape, bool) if padding is None else ~padding
    if not kept.any():
        return None
    inner = kept & (stored > stored[kept].min()) & (stored < stored[kept].max())
    for end, level in (("white", 255), ("black", 0)):
        if inner[image == level].sum() > MAX_CLIPPED_FRACTION * kept.sum():
            return end
    return None


def uses_little_range(image: np.ndarray, stored: np.ndarray, header: Dataset) -> bool:
    """Return whether an image without window and VOI LUT uses less than MIN_USED_FRACTION of its stated range.

    The range of an image is that between percentiles 1 and 99 of its gray levels, without padding.
    """
    if header.get("VOILUTSequence") or _read_window(header) or not 8 < header.BitsStored <= MAX_DETECTOR_BITS:
        return False
    padding = _find_padding(stored, header)
    visible = image if padding is None else image[~padding][None]
    if not visible.size:
        return False
    counts = np.cumsum(Image.fromarray(visible).histogram())  # faster than numpy
    low, high = np.searchsorted(counts, (0.01 * visible.size, 0.99 * visible.size))
    return bool(high - low < MIN_USED_FRACTION * 256)


def _find_padding(stored: np.ndarray, header: Dataset) -> np.ndarray | None:
    value = header.get("PixelPaddingValue")
    if value is None:
        return None
    low, high = sorted((int(value), int(header.get("PixelPaddingRangeLimit", value))))
    return (stored >= low) & (stored <= high)


def _values_to_gray(levels: np.ndarray, header: Dataset) -> np.ndarray:
    """Convert stored values to 0..255, before the inversion of MONOCHROME1."""
    values = _apply_modality_transform(levels, header)
    if header.get("VOILUTSequence"):
        first, entries = _read_lut(header.VOILUTSequence[0], header)
        return rescale_to_uint8(_apply_lut(values, first, entries), 0, find_full_range(int(entries.max())))
    if window := _read_window(header):
        return _apply_window(values, *window)
    if header.BitsStored > MAX_DETECTOR_BITS:
        return rescale_to_uint8(values, values.min(), values.max())
    low, high = _find_full_range(header)
    return rescale_to_uint8(values, *((0, 255) if header.BitsStored == 8 and low >= 0 and high <= 255 else (low, high)))


def _find_full_range(header: Dataset) -> tuple[float, float]:
    """Return the lowest and the highest possible value after the modality transform."""
    if header.get("ModalityLUTSequence"):
        entries = _read_lut(header.ModalityLUTSequence[0], header)[1]
        return float(entries.min()), float(entries.max())
    count = 2**header.BitsStored
    first = -count // 2 if header.PixelRepresentation else 0
    ends = _apply_modality_transform(np.array([first, first + count - 1]), header)
    return float(ends.min()), float(ends.max())


def _apply_modality_transform(levels: np.ndarray, header: Dataset) -> np.ndarray:
    if header.get("ModalityLUTSequence"):
        return _apply_lut(levels, *_read_lut(header.ModalityLUTSequence[0], header))
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    return levels * float(1 if slope is None else slope) + float(intercept or 0)


def _read_lut(item: Dataset, header: Dataset) -> tuple[int, np.ndarray]:
    """Return the input value of the first entry, and the entries."""
    count, first, _ = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        is_16_bit = len(data) >= 2 * (count or 2**16)  # 0 means 65,536
        data = np.frombuffer(data, "u1" if not is_16_bit else "<u2" if header.original_encoding[1] else ">u2")
    return first, np.atleast_1d(np.asarray(data))[: count or 2**16]


def _apply_lut(values: np.ndarray, first: int, entries: np.ndarray) -> np.ndarray:
    return entries[(np.rint(values).astype(np.int64) - first).clip(0, len(entries) - 1)]


def _read_window(header: Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window, or None if it is missing or its width is not positive."""
    values = (header.get(name) for name in ("WindowCenter", "WindowWidth"))
    center, width = (np.ravel([] if value is None or value == "" else value) for value in values)  # 0 is a valid centre
    if not len(center) or not len(width) or float(width[0]) <= 0:
        return None
    return float(center[0]), float(width[0]), str(header.get("VOILUTFunction") or "LINEAR")


def _apply_window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Apply one of the three functions of DICOM PS3.3 C.11.2, scaled from its own range to 0..255."""
    if function == "SIGMOID":
        return rescale_to_uint8(1 / (1 + np.exp((-4 * (values - center) / width).clip(-700, 700))), 0, 1)
    if function == "LINEAR_EXACT":
        return rescale_to_uint8(values, center - width / 2, center + width / 2)
    low = center - 0.5 - (width - 1) / 2
    # a width of 1 is a step: values up to and including the lower end are black
    return rescale_to_uint8(values, low, low + width - 1) if width > 1 else ((values > low) * 255).astype(np.uint8)
