"""Image files for tests: an 8-bit reference image in many formats."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid


def make_reference(height: int = 96, width: int = 80, seed: int = 0) -> np.ndarray:
    """Return a smooth image with noise, without symmetry, with values from 0 to 255."""
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = 120 + 70 * np.sin(rows / 23) + 50 * np.cos(columns / 17) - 0.3 * columns
    image = (smooth + np.random.default_rng(seed).normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    image[0, :2] = 0, 255
    return image


def save_image(image: np.ndarray | Image.Image, path: Path, **options) -> Path:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)
    return path


def make_png(values: np.ndarray, colour: int, chunks: bytes = b"") -> bytes:
    """Return a PNG of any bit depth and colour type, also those that Pillow cannot write."""
    height, width = values.shape[:2]
    big = values.astype(values.dtype.newbyteorder(">"))
    lines = b"".join(b"\0" + line.tobytes() for line in big)
    header = struct.pack(">IIBBBBB", width, height, values.dtype.itemsize * 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [make_chunk(b"IHDR", header), chunks, make_chunk(b"IDAT", zlib.compress(lines)), make_chunk(b"IEND", b"")]
    )


def make_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def make_12_bit_tiff(values: np.ndarray) -> bytes:
    """Return a gray TIFF of 12 bits a pixel: two pixels in three bytes."""
    bits = np.unpackbits(values.astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 4:]
    return make_tiff(values, pixels=np.packbits(bits).tobytes(), bits=12)


def make_tiff(
    values: np.ndarray, photometric: int = 1, order: str = "<", pixels: bytes = b"", bits: int = 0, largest: int = 0
) -> bytes:
    """Return an uncompressed gray TIFF of any number type and byte order; `largest`: its MaxSampleValue."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    pixels = pixels or values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    bits = bits or values.dtype.itemsize * 8
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: height}
    entries |= {279: len(pixels)} | ({281: largest} if largest else {}) | {339: kind}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    directory = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries.items())
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return mark + struct.pack(f"{order}IH", 8, len(entries)) + directory + bytes(4) + pixels


def make_dicom(stored: np.ndarray, **tags) -> Dataset:
    """Return a chest radiograph with these stored values; tags are set, or removed if None."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = "ZZTESTNAME", "ZZTESTID"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    bits = stored.dtype.itemsize * 8
    stored_bits = tags.pop("BitsStored", bits) if tags.get("BitsStored") else bits
    dataset.set_pixel_data(stored, "MONOCHROME2", stored_bits, generate_instance_uid=False)
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def compress_as(dataset: Dataset, syntax: str, frame: bytes) -> Dataset:
    """Replace the pixel data of the dataset by this codestream."""
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def save_dicom(path: Path, dataset: Dataset) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path
