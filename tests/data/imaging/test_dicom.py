"""Tests for dicom.py."""

import os
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders import gdcm, pillow, pyjpegls, pylibjpeg, rle
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)
from sample_images import compress_as, make_dicom, make_reference, save_dicom, save_image

from fastcxr.data.imaging import sniff
from fastcxr.data.imaging.dicom import read_tag
from fastcxr.data.imaging.read import read_image
from fastcxr.errors import ImageError, RecipeError

IMAGE = make_reference()
TWELVE = np.rint(IMAGE / 255 * 4095).astype(np.uint16)
FULL_WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12}


@pytest.fixture(autouse=True)
def no_warnings_logged_yet(monkeypatch):
    monkeypatch.setattr(sniff, "_warned_codes", set())


def read_error(path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    error = caught.value
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert "ZZTEST" not in str(error)
    assert error.__cause__ is None
    return error


def encode_jpeg(tmp_path, image, **options) -> bytes:
    return save_image(image, tmp_path / "frame", **options).read_bytes()


def test_a_dicom_is_read_under_any_file_name(tmp_path, recwarn):
    for name in ("a.dcm", "a.png", "IM0001", "1.2.840.7"):
        assert np.array_equal(read_image(save_dicom(tmp_path / name, make_dicom(IMAGE))), IMAGE)
    assert not recwarn.list


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_uncompressed_transfer_syntaxes_are_read(syntax, tmp_path):
    dataset = make_dicom(TWELVE, **FULL_WINDOW)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = TWELVE.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    assert np.array_equal(read_image(save_dicom(tmp_path / "a.dcm", dataset)), IMAGE)


def test_rle_is_read_exactly(tmp_path):
    for name, stored, tags in (("8", IMAGE, {}), ("12", TWELVE, FULL_WINDOW)):
        dataset = make_dicom(stored, **tags)
        dataset.compress(RLELossless, generate_instance_uid=False)
        assert np.array_equal(read_image(save_dicom(tmp_path / name, dataset)), IMAGE)


def test_jpeg_2000_is_read_exactly(tmp_path):
    frame = encode_jpeg(tmp_path, IMAGE, format="JPEG2000", no_jp2=True)
    path = save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(IMAGE), JPEG2000Lossless, frame))
    assert np.array_equal(read_image(path), IMAGE)


def test_baseline_jpeg_is_read(tmp_path):
    frame = encode_jpeg(tmp_path, IMAGE, format="JPEG", quality=95)
    path = save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(IMAGE), JPEGBaseline8Bit, frame))
    assert np.corrcoef(read_image(path).ravel(), IMAGE.ravel())[0, 1] > 0.999


def test_bits_above_the_stored_ones_are_ignored(tmp_path):
    dataset = make_dicom(TWELVE, **FULL_WINDOW)
    overlay = TWELVE | (np.uint16(1) << 12)  # old devices stored overlays in these bits
    dataset.PixelData = overlay.tobytes()
    assert np.array_equal(read_image(save_dicom(tmp_path / "a.dcm", dataset)), IMAGE)


def test_monochrome1_is_inverted(tmp_path):
    one = save_dicom(tmp_path / "1.dcm", make_dicom(IMAGE, PhotometricInterpretation="MONOCHROME1"))
    two = save_dicom(tmp_path / "2.dcm", make_dicom(IMAGE))
    assert np.array_equal(read_image(one), 255 - read_image(two))


def test_a_real_radiograph_and_its_monochrome1_version_are_inverse(real_data):
    folder = real_data / "dicom"
    image = read_image(folder / "rsna_850819.dcm")
    assert image.shape == (1024, 1024)
    assert np.array_equal(read_image(folder / "monochrome1_fake.dcm"), 255 - image)


def test_a_dicom_without_preamble_is_read(tmp_path):
    dataset = make_dicom(IMAGE)
    dataset.file_meta = FileMetaDataset()
    for name, implicit in (("a.dcm", True), ("b.DICOM", False), ("IM01", True)):
        dataset.save_as(tmp_path / name, implicit_vr=implicit, little_endian=True)
        assert (tmp_path / name).read_bytes()[128:132] != b"DICM"
        assert np.array_equal(read_image(tmp_path / name), IMAGE)


def test_a_dcm_file_without_dicom_header_is_refused(tmp_path):
    (tmp_path / "noise.dcm").write_bytes(b"\x08\0\x01\xff" * 100)
    (tmp_path / "bare.dcm").write_bytes(bytes(128) + b"DICM")
    for name in ("noise.dcm", "bare.dcm"):
        error = read_error(tmp_path / name)
        assert error.code == "E120"
        assert "no DICOM image header. Export it again as DICOM" in str(error)


def test_a_raster_image_with_dicom_suffix_is_refused(tmp_path):
    for kind in ("JPEG", "PNG"):
        error = read_error(save_image(IMAGE, tmp_path / f"{kind}.dcm", format=kind))
        assert error.code == "E121"
        assert f"{kind} content in a .dcm file. Export it again as DICOM, or rename it to .{kind.lower()}" in str(error)


def test_other_content_with_dicom_suffix_is_named(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"<html><body>login")
    assert read_error(tmp_path / "a.dcm").code == "E102"
    (tmp_path / "b.dcm").touch()
    assert read_error(tmp_path / "b.dcm").code == "E101"


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("Rows", "(0028,0010)"),
        ("Columns", "(0028,0011)"),
        ("BitsStored", "(0028,0101)"),
        ("PhotometricInterpretation", "(0028,0004)"),
        ("SamplesPerPixel", "(0028,0002)"),
        ("PixelRepresentation", "(0028,0103)"),
    ],
)
def test_a_missing_required_tag_is_named(name, tag, tmp_path):
    error = read_error(save_dicom(tmp_path / "a.dcm", make_dicom(IMAGE, **{name: None})))
    assert error.code == "E122"
    assert f"lacks {name} {tag}. Export it again" in str(error)


def test_the_error_for_a_dicom_without_pixels_names_its_sop_class(tmp_path):
    error = read_error(save_dicom(tmp_path / "a.dcm", make_dicom(IMAGE, PixelData=None)))
    assert error.code == "E123"
    assert (
        "no pixel data in this DICOM (SOP class Digital X-Ray Image Storage - For Presentation). Leave it out"
        in str(error)
    )


def test_an_unknown_sop_class_is_not_quoted(tmp_path):
    dataset = make_dicom(IMAGE, PixelData=None)
    dataset.SOPClassUID = "1.2.3.4"
    assert "(SOP class unknown)" in str(read_error(save_dicom(tmp_path / "a.dcm", dataset)))


@pytest.mark.parametrize("tags", [{"Rows": 65535}, {"NumberOfFrames": 100_000}, {"Columns": 160}])
def test_a_header_that_states_more_pixels_than_the_file_contains_is_refused(tags, tmp_path):
    error = read_error(save_dicom(tmp_path / "a.dcm", make_dicom(IMAGE, **tags)))
    assert error.code == "E124"
    assert "bytes of pixel data. Copy or export it again" in str(error)


def test_a_truncated_dicom_is_refused(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", make_dicom(IMAGE))
    path.write_bytes(path.read_bytes()[:-2000])
    assert read_error(path).code == "E124"


def test_a_truncated_compressed_dicom_is_refused(tmp_path):
    frame = encode_jpeg(tmp_path, IMAGE, format="JPEG2000", no_jp2=True)
    path = save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(IMAGE), JPEG2000Lossless, frame))
    path.write_bytes(path.read_bytes()[: -len(frame) // 2])
    error = read_error(path)
    assert error.code == "E124"
    assert "cannot be decoded (JPEG 2000 Image Compression (Lossless Only)). Export it again" in str(error)


def test_a_frame_of_another_size_than_the_header_is_refused_before_decoding(tmp_path):
    frame = encode_jpeg(tmp_path, np.zeros((8000, 8000), np.uint8), format="JPEG", quality=20)
    path = save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(IMAGE), JPEGBaseline8Bit, frame))
    assert read_error(path).code == "E124"


def test_longer_pixel_data_is_read_with_a_warning(tmp_path, caplog):
    dataset = make_dicom(IMAGE)
    dataset.PixelData += bytes(100)
    assert np.array_equal(read_image(save_dicom(tmp_path / "a.dcm", dataset)), IMAGE)
    assert "FCX-W206" in caplog.text


def test_an_unknown_transfer_syntax_is_refused_with_a_fix(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(IMAGE), JPEG2000Lossless, b"\0" * 20))
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.00"))
    error = read_error(path)
    assert error.code == "E125"
    assert "compressed as an unknown transfer syntax, for which no decoder is installed" in str(error)
    assert "Export it again without compression" in str(error)
    assert "pip" not in str(error), "pydicom has no decoder for it, with any package"


def simulate_plugins(monkeypatch, *plugins: str) -> None:
    """Simulate a pydicom that has only these plugins."""
    decoder = SimpleNamespace(is_available=bool(plugins), available_plugins=plugins)
    monkeypatch.setattr("fastcxr.data.imaging.dicom.get_decoder", lambda _: decoder)


def test_the_error_for_lossless_jpeg_names_the_missing_decoder(tmp_path, monkeypatch):
    simulate_plugins(monkeypatch)
    error = read_error(save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(IMAGE), JPEGLosslessSV1, b"\0" * 20)))
    assert error.code == "E125"
    assert "compressed as JPEG Lossless, Non-Hierarchical, First-Order Prediction" in str(error)
    assert 'Run `pip install "fastcxr[dicom]"`' in str(error)


def test_the_extra_dicom_has_a_decoder_for_every_transfer_syntax_of_pydicom():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dicom"], "gdcm"]  # of python-gdcm
    names = {re.match(r"[\w-]+", text)[0].lower() for text in needed}
    plugins = (gdcm, pillow, pyjpegls, pylibjpeg, rle)
    missing = {
        syntax.name
        for plugin in plugins
        for syntax in plugin.DECODER_DEPENDENCIES
        if not any(
            syntax in other.DECODER_DEPENDENCIES
            and {re.match(r"[\w-]+", text)[0] for text in other.DECODER_DEPENDENCIES[syntax]} <= names
            for other in plugins
        )
    }
    assert not missing


def test_the_fix_for_12_bit_jpeg_names_a_decoder_of_12_bits(tmp_path, monkeypatch):
    frame = b"\xff\xd8\xff\xc1" + bytes(40)
    path = save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(TWELVE, **FULL_WINDOW), JPEGExtended12Bit, frame))
    simulate_plugins(monkeypatch, "gdcm", "pillow")
    error = read_error(path)
    assert error.code == "E125"
    assert "compressed as JPEG Extended" in str(error)
    assert "Convert it with `dcmdjpeg` of DCMTK, or `pip install pylibjpeg pylibjpeg-libjpeg`" in str(error)
    assert "fastcxr[dicom]" not in str(error)
    simulate_plugins(monkeypatch, "gdcm", "pillow", "pylibjpeg")
    assert read_error(path).code == "E124", "a decoder for 12 bits finds damaged data"


@pytest.mark.parametrize(
    ("modality", "name"),
    [("CT", "computed tomography"), ("US", "ultrasound"), ("MG", "mammography"), ("SR", "a structured report")],
)
def test_other_modalities_are_refused(modality, name, tmp_path):
    error = read_error(save_dicom(tmp_path / "a.dcm", make_dicom(IMAGE, Modality=modality, SOPClassUID=CTImageStorage)))
    assert error.code == "E126"
    assert f"{name}, not a chest radiograph (Modality {modality}). Leave it out" in str(error)


OTHER_DEVICE = {"Modality": "OT"}  # codespell:ignore ot


@pytest.mark.parametrize("tags", [{"ViewPosition": "LL"}, {"BodyPartExamined": "KNEE"}, OTHER_DEVICE])
def test_a_lateral_view_or_another_body_part_is_read_with_one_warning(tags, tmp_path, caplog):
    path = save_dicom(tmp_path / "a.dcm", make_dicom(IMAGE, **tags))
    for _ in range(3):
        assert np.array_equal(read_image(path), IMAGE)
    assert caplog.text.count("FCX-W207") == 1
    assert "ZZTEST" not in caplog.text


def test_missing_tags_about_the_view_cause_no_warning(tmp_path, caplog):
    absent = {"Modality": None, "BodyPartExamined": None, "ViewPosition": None}
    read_image(save_dicom(tmp_path / "a.dcm", make_dicom(IMAGE, **absent)))
    assert not caplog.records


def test_several_frames_and_rare_colour_spaces_are_refused(tmp_path):
    unsupported = "unsupported colour space. Export it in gray or RGB"
    for dataset, text, code in (
        (make_dicom(np.stack([IMAGE] * 3)), "3 frames in one DICOM. Save one radiograph per file", "E108"),
        (make_dicom(IMAGE, PhotometricInterpretation="PALETTE COLOR"), unsupported, "E127"),
        (make_dicom(IMAGE, PhotometricInterpretation="RGB"), unsupported, "E127"),
    ):
        error = read_error(save_dicom(tmp_path / "a.dcm", dataset))
        assert error.code == code
        assert text in str(error)


def test_a_dicom_that_is_too_large_is_refused_by_its_header(tmp_path):
    dataset = make_dicom(np.zeros((1, 1), np.uint8), Rows=20_000, Columns=20_000)
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([b"\0" * 64])
    dataset["PixelData"].is_undefined_length = True
    assert read_error(save_dicom(tmp_path / "a.dcm", dataset)).code == "E109"


def test_a_deflated_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.data.imaging.dicom.MAX_INFLATED_BYTES", 100_000)
    dataset = make_dicom(np.zeros((900, 900), np.uint8))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    error = read_error(save_dicom(tmp_path / "a.dcm", dataset))
    assert error.code == "E109"
    assert "Save it smaller" in str(error)


@pytest.mark.parametrize("damage", ["truncated", "corrupt"])
def test_damaged_deflated_data_is_refused(damage, tmp_path):
    dataset = make_dicom(IMAGE)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save_dicom(tmp_path / "a.dcm", dataset)
    content = path.read_bytes()
    path.write_bytes(content[:-3000] if damage == "truncated" else content[:400] + b"\xff" * len(content[400:]))
    error = read_error(path)
    assert error.code == "E124"
    assert "damaged or truncated deflated data. Copy it again" in str(error)


def test_a_damaged_window_is_refused_without_quoting_it(tmp_path):
    dataset = make_dicom(TWELVE, WindowCenter=1234, WindowWidth=500)
    path = save_dicom(tmp_path / "a.dcm", dataset)
    path.write_bytes(path.read_bytes().replace(b"1234", b"JANE"))
    error = read_error(path)
    assert error.code == "E122"
    assert "JANE" not in str(error)


def test_a_patient_tag_is_read_without_pixels(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", make_dicom(IMAGE))
    path.write_bytes(path.read_bytes()[: -IMAGE.size])
    assert read_tag(path) == "ZZTESTID"
    assert read_tag(path, "PatientName") == "ZZTESTNAME"
    assert read_tag(path, "(0010,0020)") == read_tag(path, "0010,0020") == "ZZTESTID"
    assert read_tag(path, "AccessionNumber") is None


def test_files_that_are_not_dicom_have_no_patient_tag(tmp_path):
    os.mkfifo(tmp_path / "fifo.dcm")
    (tmp_path / "noise.dcm").write_bytes(b"\x08\0\x01\xff" * 100)
    save_image(IMAGE, tmp_path / "a.png")
    for name in ("fifo.dcm", "noise.dcm", "a.png", "gone.dcm"):
        assert read_tag(tmp_path / name) is None


def test_an_empty_patient_tag_is_none(tmp_path):
    assert read_tag(save_dicom(tmp_path / "a.dcm", make_dicom(IMAGE, PatientID=" "))) is None


def test_the_error_for_an_unknown_tag_suggests_a_similar_one(tmp_path):
    with pytest.raises(RecipeError, match="unknown DICOM tag 'PatientId'. Did you mean PatientID?"):
        read_tag(tmp_path / "a.dcm", "PatientId")
    with pytest.raises(RecipeError, match="Write it as PatientID or 0010,0020"):
        read_tag(tmp_path / "a.dcm", "§§§")
