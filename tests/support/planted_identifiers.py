"""A dataset with a patient name in all metadata, unreadable files of every type, links and system files."""

import hashlib
import os
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from sample_images import make_chunk, make_dicom, make_tiff, save_dicom, save_image
from toy_images import LABELS, draw_toy

NAME = "ZZTESTNAME"
ODD = (
    "with space.png", "ünïcode é 🫁.png", "new\nline.png", "=cmd|' C calc'!A0.png", "@x.png", "-1+1.png",
    "CASE.png", "case.png", "zoe\u0301.png", "zo\u00e9.png", "trailing .png", "quote'\".png",
)  # fmt: skip


def write_cohort(folder: Path) -> Path:
    """Write class folders of toy images in all formats, with the name in metadata and DICOM tags."""
    for k, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True)
        for number in range(12):
            write_good(folder / label / f"im{number}", draw_toy(label, number), number, patient=f"{k}{number // 6}")
    for number, name in enumerate(ODD):
        Image.fromarray(draw_toy("haze", 100 + number)).save(folder / "haze" / name)
    write_litter(folder)
    return folder


def write_good(stem: Path, pixels: np.ndarray, number: int, patient: str) -> None:
    image, suffix = Image.fromarray(pixels), (".dcm", ".jpg", ".tif", ".png")[number % 4]
    path = stem.with_suffix(suffix)
    if suffix == ".dcm":
        names = {"PatientName": f"{NAME}^A", "PatientID": f"{NAME}{patient}", "OtherPatientIDs": NAME}
        save_dicom(path, make_dicom(pixels, StudyDescription=NAME, ViewPosition="LL", **names))
    elif suffix == ".jpg":
        exif = Image.Exif()
        exif[0x013B] = exif[0x010E] = NAME
        image.save(path, exif=exif, comment=NAME.encode(), quality=95)
    elif suffix == ".tif":
        image.save(path, tiffinfo={270: NAME, 315: NAME})
    else:
        text = PngImagePlugin.PngInfo()
        text.add_text("Author", NAME)
        image.save(path, pnginfo=text)


def write_litter(folder: Path) -> None:
    """Write circular links, broken links, a FIFO, hidden files and system files."""
    here = folder / "clear"
    (here / "loop").symlink_to("..")
    (here / "nothing.png").symlink_to("gone.png")
    (here / "again.png").symlink_to("im3.png")
    os.mkfifo(here / "pipe.png")
    for name in (".hidden.png", "._im0.png", "Thumbs.db"):
        (here / name).write_bytes(b"x")


def write_bad(folder: Path) -> dict[str, str]:
    """Write unreadable files in the class clear; return the expected error code of each relative path."""
    here, pixels = folder / "clear", draw_toy("clear", 50)
    gray = Image.fromarray(pixels)
    png = save_image(gray, folder / "spare.png").read_bytes()
    (folder / "spare.png").unlink()
    header = np.array([20_000, 20_000], ">u4").tobytes() + bytes([8, 0, 0, 0, 0])
    bomb = b"\x89PNG\r\n\x1a\n" + make_chunk(b"IHDR", header) + make_chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
    (here / "empty.png").write_bytes(b"")
    (here / "page.jpg").write_bytes(b"<html>" + NAME.encode())
    (here / "cut.png").write_bytes(png[: len(png) // 2])
    (here / "corrupt.png").write_bytes(png[:60] + bytes(40) + png[100:])
    (here / "nan.tif").write_bytes(make_tiff(np.full((80, 80), np.nan, np.float32)))
    Image.fromarray(np.dstack([pixels] * 3 + [np.zeros_like(pixels)])).save(here / "clear.png")
    gray.save(here / "pages.tif", save_all=True, append_images=[gray])
    (here / "bomb.png").write_bytes(bomb)
    gray.resize((20, 20)).save(here / "small.png")
    Image.new("L", (90, 90), 255).save(here / "white.png")
    (here / "jpeg.dcm").write_bytes(save_image(gray, folder / "spare.jpg").read_bytes())
    (folder / "spare.jpg").unlink()
    save_dicom(here / "ct.dcm", make_dicom(pixels, Modality="CT", PatientName=NAME))
    short = make_dicom(pixels, PatientName=NAME)
    short.PixelData = short.PixelData[:-900]
    save_dicom(here / "short.dcm", short)
    save_dicom(here / "report.dcm", _without_pixels(pixels))
    return {
        f"clear/{name}": code
        for name, code in {
            "empty.png": "E101", "page.jpg": "E102", "cut.png": "E103", "corrupt.png": "E104", "nan.tif": "E106",
            "clear.png": "E107", "pages.tif": "E108", "bomb.png": "E109", "small.png": "E110", "white.png": "E111",
            "jpeg.dcm": "E121", "ct.dcm": "E126", "short.dcm": "E124", "report.dcm": "E123",
        }.items()
    }  # fmt: skip


def _without_pixels(pixels: np.ndarray):
    dataset = make_dicom(pixels, PatientName=NAME)
    del dataset.PixelData
    return dataset


def tree_hash(folder: Path) -> str:
    """Return a hash of all names, links, sizes, modification times and contents in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=os.fsencode):
        status = path.lstat()
        found.update(os.fsencode(path) + f"{status.st_mode} {status.st_size} {status.st_mtime_ns}".encode())
        if path.is_file() and not path.is_symlink():
            found.update(path.read_bytes())
    return found.hexdigest()
