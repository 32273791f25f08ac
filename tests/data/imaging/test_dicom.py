"""Tests for dicom.py"""

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

PICTURE = make_reference()
TWELVE = np.rint(PICTURE / 255 * 4095).astype(np.uint16)
FULL_WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12}


@pytest.fixture(autouse=True)
def nothing_was_said_yet(monkeypatch):
    monkeypatch.setattr(sniff, "_warned_codes", set())


def refuse(path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    error = caught.value
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert "ZZTEST" not in str(error)
    assert error.__cause__ is None
    return error


def encode_jpeg(tmp_path, picture, **options) -> bytes:
    return save_image(picture, tmp_path / "frame", **options).read_bytes()


def test_a_dicom_is_read_whatever_its_name(tmp_path, recwarn):
    for name in ("a.dcm", "a.png", "IM0001", "1.2.840.7"):
        assert np.array_equal(read_image(save_dicom(tmp_path / name, make_dicom(PICTURE))), PICTURE)
    assert not recwarn.list


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_plain_syntax_is_read(syntax, tmp_path):
    dataset = make_dicom(TWELVE, **FULL_WINDOW)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = TWELVE.astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = syntax
    assert np.array_equal(read_image(save_dicom(tmp_path / "a.dcm", dataset)), PICTURE)


def test_rle_is_read_exactly(tmp_path):
    for name, stored, tags in (("8", PICTURE, {}), ("12", TWELVE, FULL_WINDOW)):
        dataset = make_dicom(stored, **tags)
        dataset.compress(RLELossless, generate_instance_uid=False)
        assert np.array_equal(read_image(save_dicom(tmp_path / name, dataset)), PICTURE)


def test_jpeg_2000_is_read_exactly(tmp_path):
    frame = encode_jpeg(tmp_path, PICTURE, format="JPEG2000", no_jp2=True)
    path = save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(PICTURE), JPEG2000Lossless, frame))
    assert np.array_equal(read_image(path), PICTURE)


def test_baseline_jpeg_is_read(tmp_path):
    frame = encode_jpeg(tmp_path, PICTURE, format="JPEG", quality=95)
    path = save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(PICTURE), JPEGBaseline8Bit, frame))
    assert np.corrcoef(read_image(path).ravel(), PICTURE.ravel())[0, 1] > 0.999


def test_bits_above_the_stored_ones_are_no_part_of_the_picture(tmp_path):
    dataset = make_dicom(TWELVE, **FULL_WINDOW)
    overlay = TWELVE | (np.uint16(1) << 12)  # old machines kept overlays there
    dataset.PixelData = overlay.tobytes()
    assert np.array_equal(read_image(save_dicom(tmp_path / "a.dcm", dataset)), PICTURE)


def test_monochrome1_is_the_inverse_of_the_same_values(tmp_path):
    one = save_dicom(tmp_path / "1.dcm", make_dicom(PICTURE, PhotometricInterpretation="MONOCHROME1"))
    two = save_dicom(tmp_path / "2.dcm", make_dicom(PICTURE))
    assert np.array_equal(read_image(one), 255 - read_image(two))


def test_a_real_radiograph_and_its_monochrome1_twin_are_inverse(real_data):
    folder = real_data / "dicom"
    picture = read_image(folder / "rsna_850819.dcm")
    assert picture.shape == (1024, 1024)
    assert np.array_equal(read_image(folder / "monochrome1_fake.dcm"), 255 - picture)


def test_a_dicom_without_preamble_is_read(tmp_path):
    dataset = make_dicom(PICTURE)
    dataset.file_meta = FileMetaDataset()
    for name, implicit in (("a.dcm", True), ("b.DICOM", False), ("IM01", True)):
        dataset.save_as(tmp_path / name, implicit_vr=implicit, little_endian=True)
        assert (tmp_path / name).read_bytes()[128:132] != b"DICM"
        assert np.array_equal(read_image(tmp_path / name), PICTURE)


def test_what_is_no_dicom_under_its_name_is_refused(tmp_path):
    (tmp_path / "noise.dcm").write_bytes(b"\x08\0\x01\xff" * 100)
    (tmp_path / "bare.dcm").write_bytes(bytes(128) + b"DICM")
    for name in ("noise.dcm", "bare.dcm"):
        error = refuse(tmp_path / name)
        assert error.code == "E120"
        assert "no DICOM image header in it. Export it again as DICOM" in str(error)


def test_a_picture_under_a_dicom_name_is_refused(tmp_path):
    for kind in ("JPEG", "PNG"):
        error = refuse(save_image(PICTURE, tmp_path / f"{kind}.dcm", format=kind))
        assert error.code == "E121"
        assert f"a {kind} inside a .dcm name. Export it again as DICOM, or rename it to .{kind.lower()}" in str(error)


def test_other_content_under_a_dicom_name_is_named(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"<html><body>login")
    assert refuse(tmp_path / "a.dcm").code == "E102"
    (tmp_path / "b.dcm").touch()
    assert refuse(tmp_path / "b.dcm").code == "E101"


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
def test_a_missing_element_is_named(name, tag, tmp_path):
    error = refuse(save_dicom(tmp_path / "a.dcm", make_dicom(PICTURE, **{name: None})))
    assert error.code == "E122"
    assert f"lacks {name} {tag}. Export it again" in str(error)


def test_a_dicom_without_pixels_names_its_class(tmp_path):
    error = refuse(save_dicom(tmp_path / "a.dcm", make_dicom(PICTURE, PixelData=None)))
    assert error.code == "E123"
    assert "no image in this DICOM (SOP class Digital X-Ray Image Storage - For Presentation). Leave it out" in str(
        error
    )


def test_a_class_that_holds_anything_is_not_repeated(tmp_path):
    dataset = make_dicom(PICTURE, PixelData=None)
    dataset.SOPClassUID = "1.2.3.4"
    assert "(SOP class unknown)" in str(refuse(save_dicom(tmp_path / "a.dcm", dataset)))


@pytest.mark.parametrize("tags", [{"Rows": 65535}, {"NumberOfFrames": 100_000}, {"Columns": 160}])
def test_a_header_that_claims_more_than_there_is_is_refused(tags, tmp_path):
    error = refuse(save_dicom(tmp_path / "a.dcm", make_dicom(PICTURE, **tags)))
    assert error.code == "E124"
    assert "bytes of pixel data. Copy or export it again" in str(error)


def test_a_truncated_dicom_is_refused(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", make_dicom(PICTURE))
    path.write_bytes(path.read_bytes()[:-2000])
    assert refuse(path).code == "E124"


def test_a_truncated_compressed_dicom_is_refused(tmp_path):
    frame = encode_jpeg(tmp_path, PICTURE, format="JPEG2000", no_jp2=True)
    path = save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(PICTURE), JPEG2000Lossless, frame))
    path.write_bytes(path.read_bytes()[: -len(frame) // 2])
    error = refuse(path)
    assert error.code == "E124"
    assert "cannot be decoded (JPEG 2000 Image Compression (Lossless Only)). Export it again" in str(error)


def test_a_frame_of_another_size_than_the_header_is_refused_before_decoding(tmp_path):
    frame = encode_jpeg(tmp_path, np.zeros((8000, 8000), np.uint8), format="JPEG", quality=20)
    path = save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(PICTURE), JPEGBaseline8Bit, frame))
    assert refuse(path).code == "E124"


def test_longer_pixel_data_is_read_and_said_aloud(tmp_path, caplog):
    dataset = make_dicom(PICTURE)
    dataset.PixelData += bytes(100)
    assert np.array_equal(read_image(save_dicom(tmp_path / "a.dcm", dataset)), PICTURE)
    assert "FCX-W206" in caplog.text


def test_a_compression_without_decoder_is_named_with_the_remedy(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(PICTURE), JPEG2000Lossless, b"\0" * 20))
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.00"))
    error = refuse(path)
    assert error.code == "E125"
    assert "compressed as an unknown transfer syntax, for which no decoder is installed" in str(error)
    assert "Export it again without compression" in str(error)
    assert "pip" not in str(error), "pydicom knows no decoder for it, whatever is installed"


def install(monkeypatch, *plugins: str) -> None:
    """Make pydicom appear to have only these plugins."""
    decoder = SimpleNamespace(is_available=bool(plugins), available_plugins=plugins)
    monkeypatch.setattr("fastcxr.data.imaging.dicom.get_decoder", lambda _: decoder)


def test_lossless_jpeg_names_itself_where_no_decoder_is_installed(tmp_path, monkeypatch):
    install(monkeypatch)
    error = refuse(save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(PICTURE), JPEGLosslessSV1, b"\0" * 20)))
    assert error.code == "E125"
    assert "compressed as JPEG Lossless, Non-Hierarchical, First-Order Prediction" in str(error)
    assert '`pip install "fastcxr[dicom]"` installs one' in str(error)


def test_the_extra_for_dicom_holds_a_decoder_for_every_syntax_that_pydicom_decodes():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dicom"], "gdcm"]  # of python-gdcm
    names = {re.match(r"[\w-]+", text)[0].lower() for text in needed}
    plugins = (gdcm, pillow, pyjpegls, pylibjpeg, rle)
    lacking = {
        syntax.name
        for plugin in plugins
        for syntax in plugin.DECODER_DEPENDENCIES
        if not any(
            syntax in other.DECODER_DEPENDENCIES
            and {re.match(r"[\w-]+", text)[0] for text in other.DECODER_DEPENDENCIES[syntax]} <= names
            for other in plugins
        )
    }
    assert not lacking


def test_the_remedy_for_12_bit_jpeg_is_not_what_decodes_8_bits_only(tmp_path, monkeypatch):
    frame = b"\xff\xd8\xff\xc1" + bytes(40)
    path = save_dicom(tmp_path / "a.dcm", compress_as(make_dicom(TWELVE, **FULL_WINDOW), JPEGExtended12Bit, frame))
    install(monkeypatch, "gdcm", "pillow")
    error = refuse(path)
    assert error.code == "E125"
    assert "compressed as JPEG Extended" in str(error)
    assert "Convert it with `dcmdjpeg` of DCMTK, or `pip install pylibjpeg pylibjpeg-libjpeg`" in str(error)
    assert "fastcxr[dicom]" not in str(error)
    install(monkeypatch, "gdcm", "pillow", "pylibjpeg")
    assert refuse(path).code == "E124", "with a decoder for 12 bits the data is damaged"


@pytest.mark.parametrize(
    ("modality", "words"), [("CT", "computed tomography"), ("US", "ultrasound"), ("MG", "mammography")]
)
def test_another_kind_of_image_is_refused(modality, words, tmp_path):
    error = refuse(save_dicom(tmp_path / "a.dcm", make_dicom(PICTURE, Modality=modality, SOPClassUID=CTImageStorage)))
    assert error.code == "E126"
    assert f"{words}, not a chest radiograph (Modality {modality}). Leave it out" in str(error)


@pytest.mark.parametrize("tags", [{"ViewPosition": "LL"}, {"BodyPartExamined": "KNEE"}, {"Modality": "OT"}])
def test_a_lateral_view_or_another_part_is_read_and_said_aloud_once(tags, tmp_path, caplog):
    path = save_dicom(tmp_path / "a.dcm", make_dicom(PICTURE, **tags))
    for _ in range(3):
        assert np.array_equal(read_image(path), PICTURE)
    assert caplog.text.count("FCX-W207") == 1
    assert "ZZTEST" not in caplog.text


def test_missing_words_about_the_view_are_no_reason_to_warn(tmp_path, caplog):
    absent = {"Modality": None, "BodyPartExamined": None, "ViewPosition": None}
    read_image(save_dicom(tmp_path / "a.dcm", make_dicom(PICTURE, **absent)))
    assert not caplog.records


def test_several_frames_and_rare_kinds_of_colour_are_refused(tmp_path):
    rare = "a kind of colour DICOM that cannot be read. Export it in gray or RGB"
    for dataset, text, code in (
        (make_dicom(np.stack([PICTURE] * 3)), "3 frames in one DICOM. Split it", "E108"),
        (make_dicom(PICTURE, PhotometricInterpretation="PALETTE COLOR"), rare, "E127"),
        (make_dicom(PICTURE, PhotometricInterpretation="RGB"), rare, "E127"),
    ):
        error = refuse(save_dicom(tmp_path / "a.dcm", dataset))
        assert error.code == code
        assert text in str(error)


def test_a_dicom_too_large_is_refused_from_its_header(tmp_path):
    dataset = make_dicom(np.zeros((1, 1), np.uint8), Rows=20_000, Columns=20_000)
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([b"\0" * 64])
    dataset["PixelData"].is_undefined_length = True
    assert refuse(save_dicom(tmp_path / "a.dcm", dataset)).code == "E109"


def test_a_deflated_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.data.imaging.dicom.MAX_INFLATED_BYTES", 100_000)
    dataset = make_dicom(np.zeros((900, 900), np.uint8))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    error = refuse(save_dicom(tmp_path / "a.dcm", dataset))
    assert error.code == "E109"
    assert "Save it smaller" in str(error)


def test_a_truncated_deflated_dicom_is_refused(tmp_path):
    dataset = make_dicom(PICTURE)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = save_dicom(tmp_path / "a.dcm", dataset)
    path.write_bytes(path.read_bytes()[:-3000])
    error = refuse(path)
    assert error.code == "E124"
    assert "its deflated data is damaged or cut off. Copy it again" in str(error)


def test_a_damaged_window_is_refused_without_repeating_it(tmp_path):
    dataset = make_dicom(TWELVE, WindowCenter=1234, WindowWidth=500)
    path = save_dicom(tmp_path / "a.dcm", dataset)
    path.write_bytes(path.read_bytes().replace(b"1234", b"JANE"))
    error = refuse(path)
    assert error.code == "E122"
    assert "JANE" not in str(error)


def test_a_patient_tag_is_read_from_the_header_alone(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", make_dicom(PICTURE))
    path.write_bytes(path.read_bytes()[: -PICTURE.size])  # no pixel is needed
    assert read_tag(path) == "ZZTESTID"
    assert read_tag(path, "PatientName") == "ZZTESTNAME"
    assert read_tag(path, "(0010,0020)") == read_tag(path, "0010,0020") == "ZZTESTID"
    assert read_tag(path, "AccessionNumber") is None


def test_files_that_are_no_dicom_have_no_patient_tag(tmp_path):
    os.mkfifo(tmp_path / "fifo.dcm")
    (tmp_path / "noise.dcm").write_bytes(b"\x08\0\x01\xff" * 100)
    save_image(PICTURE, tmp_path / "a.png")
    for name in ("fifo.dcm", "noise.dcm", "a.png", "gone.dcm"):
        assert read_tag(tmp_path / name) is None


def test_an_empty_patient_tag_is_none(tmp_path):
    assert read_tag(save_dicom(tmp_path / "a.dcm", make_dicom(PICTURE, PatientID=" "))) is None


def test_an_unknown_tag_suggests_the_right_one(tmp_path):
    with pytest.raises(RecipeError, match="no DICOM tag called 'PatientId'. Did you mean PatientID?"):
        read_tag(tmp_path / "a.dcm", "PatientId")
    with pytest.raises(RecipeError, match="Write it like PatientID or 0010,0020"):
        read_tag(tmp_path / "a.dcm", "§§§")
