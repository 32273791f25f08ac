"""Stored values of a DICOM and its header come in; the 8-bit gray picture that a viewer shows goes out.

Order of the steps: modality table or rescale -> table of interest (VOI LUT), else the first window -> 0..255 ->
turned positive when MONOCHROME1 (pydicom never does) -> padding black. A window is scaled by its own range.
Without table and window, 8-bit values stay as they are, and of deeper ones the full range of BitsStored becomes 0..255,
as modality table or rescale map it: two exposures of one detector keep their ratio. Values of more than 16 bits are
stretched from their minimum to their maximum, padding left out.
"""

import numpy as np
from pydicom import Dataset

from fastcxr.data.imaging.intensity import apply_lookup_table, find_full_range, rescale_to_uint8

MOST_CLIPPED = 0.5  # share of an image
MOST_BITS = 16  # no detector gives more: what has more was computed, and its range says nothing


def stored_to_gray(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Stored values to the gray levels of a screen, uint8, of the same shape."""
    padding = _find_padding(stored, header)
    visible = stored if padding is None else stored[~padding]
    if not visible.size:
        return np.zeros(stored.shape, np.uint8)
    low, high = int(visible.min()), int(visible.max())
    if high - low < 2**16:  # each value once instead of each pixel: a tenth of the time and of the memory
        image = apply_lookup_table(stored, _values_to_gray(np.arange(low, high + 1), header), low)
    else:
        image = _values_to_gray(stored, header)
    if header.PhotometricInterpretation == "MONOCHROME1":
        image = 255 - image
    return image if padding is None else np.where(padding, np.uint8(0), image)


def find_clipped_end(picture: np.ndarray, stored: np.ndarray, header: Dataset) -> str | None:
    """Return "white" or "black" where the window or VOI LUT shows most pixels so although they differ in the file.

    Pixels of the lowest and highest stored value do not count: a border has one of them.
    """
    if not header.get("VOILUTSequence") and _read_window(header) is None:
        return None
    padding = _find_padding(stored, header)
    kept = np.ones(stored.shape, bool) if padding is None else ~padding
    if not kept.any():
        return None
    inner = kept & (stored > stored[kept].min()) & (stored < stored[kept].max())
    ends = {"white": 255, "black": 0}
    return next((end for end, level in ends.items() if inner[picture == level].sum() > MOST_CLIPPED * kept.sum()), None)


def _find_padding(stored: np.ndarray, header: Dataset) -> np.ndarray | None:
    """Where the picture was only filled up to a rectangle."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return None
    low, high = sorted((int(value), int(header.get("PixelPaddingRangeLimit", value))))
    return (stored >= low) & (stored <= high)


def _values_to_gray(levels: np.ndarray, header: Dataset) -> np.ndarray:
    """Stored values to 0..255, each on its own; not yet turned positive."""
    values = _apply_modality_transform(levels, header)
    if header.get("VOILUTSequence"):
        first, entries = _read_lut(header.VOILUTSequence[0], header)
        return rescale_to_uint8(_apply_lut(values, first, entries), 0, find_full_range(int(entries.max())))
    window = _read_window(header)
    if window:
        return _apply_window(values, *window)
    if header.BitsStored > MOST_BITS:
        return rescale_to_uint8(values, values.min(), values.max())
    low, high = _find_full_range(header)
    return rescale_to_uint8(values, *((0, 255) if header.BitsStored == 8 and low >= 0 and high <= 255 else (low, high)))


def _find_full_range(header: Dataset) -> tuple[float, float]:
    """The lowest and the highest value that a picture with this header can have after its modality transform."""
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
    """The input value of the first entry, and the entries."""
    count, first, _ = (int(number) for number in item.LUTDescriptor)
    data = item.LUTData
    if isinstance(data, bytes):
        is_16_bit = len(data) >= 2 * (count or 2**16)  # 0 stands for 65,536, which does not fit into its own field
        data = np.frombuffer(data, "u1" if not is_16_bit else "<u2" if header.original_encoding[1] else ">u2")
    return first, np.atleast_1d(np.asarray(data))[: count or 2**16]


def _apply_lut(values: np.ndarray, first: int, entries: np.ndarray) -> np.ndarray:
    return entries[(np.rint(values).astype(np.int64) - first).clip(0, len(entries) - 1)]


def _read_window(header: Dataset) -> tuple[float, float, str] | None:
    """Centre, width and shape of the first window; None where there is none, or one without a width."""
    center, width = (header.get(name) for name in ("WindowCenter", "WindowWidth"))
    center, width = (np.ravel([] if value is None or value == "" else value) for value in (center, width))  # 0 is one
    if not len(center) or not len(width) or float(width[0]) <= 0:
        return None
    return float(center[0]), float(width[0]), str(header.get("VOILUTFunction") or "LINEAR")


def _apply_window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """The three formulas of DICOM PS3.3 C.11.2, each scaled from its own range to 0..255."""
    if function == "SIGMOID":
        return rescale_to_uint8(1 / (1 + np.exp((-4 * (values - center) / width).clip(-700, 700))), 0, 1)
    if function == "LINEAR_EXACT":
        return rescale_to_uint8(values, center - width / 2, center + width / 2)
    low = center - 0.5 - (width - 1) / 2
    # a width of one is a step: dark up to and with the lower end
    return rescale_to_uint8(values, low, low + width - 1) if width > 1 else ((values > low) * 255).astype(np.uint8)
