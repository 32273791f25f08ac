"""Images of every supported format, damaged at random as by disks, transfers and attackers."""

import os
import random
import resource
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless
from sample_images import make_dicom, make_png, make_reference, make_tiff, save_dicom, save_image

from fastcxr.data.imaging.read import read_image
from fastcxr.errors import ImageError

IDENTITY = "ZZTESTNAME"


def write_kinds(folder: Path) -> list[Path]:
    """Write one intact file of each format; the DICOM files contain the name of a patient."""
    image = make_reference()
    gray, deep = Image.fromarray(image), image.astype(np.uint16) * 257
    (folder / "float.tif").write_bytes(make_tiff((image / 255).astype(np.float32)))
    (folder / "int16_be.tif").write_bytes(make_tiff(deep, order=">"))
    (folder / "deep_rgb.png").write_bytes(make_png(np.dstack([deep] * 3), 2))
    made = [
        save_image(gray, folder / "gray.png"),
        save_image(Image.fromarray(deep), folder / "deep.png"),
        save_image(gray.convert("P"), folder / "palette.png"),
        save_image(gray.convert("RGBA"), folder / "rgba.png"),
        save_image(gray, folder / "gray.jpg", quality=90, comment=IDENTITY.encode()),
        save_image(gray, folder / "progressive.jpg", quality=90, progressive=True),
        save_image(gray.convert("CMYK"), folder / "cmyk.jpg", quality=90),
        save_image(gray, folder / "gray.bmp"),
        save_image(gray.convert("P"), folder / "palette.bmp"),
        save_image(gray, folder / "lzw.tif", compression="tiff_lzw", tiffinfo={270: IDENTITY}),
        save_image(gray, folder / "deflate.tif", compression="tiff_adobe_deflate"),
        save_image(gray.convert("1"), folder / "fax.tif", compression="group4"),
        folder / "float.tif",
        folder / "int16_be.tif",
        folder / "deep_rgb.png",
    ]
    tags = {"WindowCenter": 128, "WindowWidth": 256, "PatientName": IDENTITY, "PatientID": IDENTITY}
    for name, syntax in (
        ("implicit", ImplicitVRLittleEndian),
        ("big", ExplicitVRBigEndian),
        ("deflated", DeflatedExplicitVRLittleEndian),
    ):
        dataset = make_dicom(image, **tags)
        dataset.file_meta.TransferSyntaxUID = syntax
        made.append(save_dicom(folder / f"{name}.dcm", dataset))
    rle = make_dicom(image, **tags)
    rle.compress(RLELossless, generate_instance_uid=False)
    return [*made, save_dicom(folder / "plain.dcm", make_dicom(image, **tags)), save_dicom(folder / "rle.dcm", rle)]


def mutate(data: bytes, other: bytes, dice: random.Random) -> bytes:
    """Return the file with some changed bits, runs of one byte, lost, repeated or foreign parts, or truncated."""
    changed = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 5])):
        start = dice.randrange(min(len(changed), 400) if dice.random() < 0.6 else len(changed))  # headers come first
        end = min(len(changed), start + dice.choice([1, 2, 4, 8, 64]))
        match dice.randrange(8):
            case 0 | 1 | 2:
                changed[start] ^= 1 << dice.randrange(8)
            case 3:
                changed[start:end] = bytes([dice.choice([0, 0x7F, 0x80, 0xFF])]) * (end - start)
            case 4:
                del changed[start:end]
            case 5:
                changed[start:start] = changed[start:end]
            case 6:
                changed[start:end] = other[start:end]
            case 7:
                del changed[max(1, start) :]
        if not changed:
            return b"\0"
    return bytes(changed)


def draw_mutants(folder: Path, count: int, seed: int = 0) -> Iterator[Path]:
    """Yield `count` damaged files, of each format in turn."""
    dice = random.Random(seed)
    kinds = [(path.suffix, path.read_bytes()) for path in write_kinds(folder)]
    for number in range(count):
        suffix, data = kinds[number % len(kinds)]
        path = folder / f"mutant{suffix}"
        path.write_bytes(mutate(data, dice.choice(kinds)[1], dice))
        yield path


def read_mutants(count: int, seed: int) -> dict:
    """Return outcomes by error code, exceptions other than ImageError, and peak memory [MB].

    To be run in a separate process: the peak of memory is that of these reads, and messages of libtiff are discarded.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    outcomes, escaped = Counter(), Counter()
    with tempfile.TemporaryDirectory() as place:
        before = peak_megabytes()
        for path in draw_mutants(Path(place), count, seed):
            try:
                read_image(path)
                outcomes["read"] += 1
            except ImageError as error:
                outcomes[error.code] += 1
                if "\n" in str(error) or IDENTITY in str(error) or not error.code:
                    escaped["an error of more than a line, or with a name in it"] += 1
            except Exception as error:  # only ImageError is allowed; other exceptions are counted
                escaped[type(error).__name__] += 1
    return {"outcomes": dict(outcomes), "escaped": dict(escaped), "megabytes": peak_megabytes() - before}


def peak_megabytes() -> float:
    """Return the peak memory of this process [MB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
