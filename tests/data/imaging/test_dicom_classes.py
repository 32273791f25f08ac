"""Tests for dicom_classes.py: refusal of other SOP classes, and warnings about doubtful gray levels."""

import numpy as np
import pytest
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    ParametricMapStorage,
    RTDoseStorage,
    RTImageStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    VLPhotographicImageStorage,
    XRayRadiofluoroscopicImageStorage,
)
from sample_images import make_dicom, make_reference, save_dicom

from fastcxr.data.imaging import sniff
from fastcxr.data.imaging.read import read_image
from fastcxr.errors import ImageError

IMAGE = make_reference()


@pytest.fixture(autouse=True)
def no_warnings_logged_yet(monkeypatch):
    monkeypatch.setattr(sniff, "_warned_codes", set())


def read(tmp_path, stored=IMAGE, **tags) -> np.ndarray:
    return read_image(save_dicom(tmp_path / "a.dcm", make_dicom(stored, **tags)))


@pytest.mark.parametrize(
    "uid",
    [
        SegmentationStorage,
        ParametricMapStorage,
        RTDoseStorage,
        RTImageStorage,
        CTImageStorage,
        DigitalMammographyXRayImageStorageForPresentation,
        VLPhotographicImageStorage,
    ],
)
@pytest.mark.parametrize("modality", ["DX", None])
def test_sop_classes_of_other_images_are_refused_with_any_modality(uid, modality, tmp_path):
    with pytest.raises(ImageError) as caught:
        read(tmp_path, SOPClassUID=uid, Modality=modality)
    assert caught.value.code == "E126"
    assert f"not a chest radiograph (SOP class {uid.name}). Leave it out" in str(caught.value)


@pytest.mark.parametrize("modality", ["SEG", "RTDOSE", "RTIMAGE"])
def test_a_segmentation_or_dose_is_refused_with_any_sop_class(modality, tmp_path):
    with pytest.raises(ImageError, match=rf"not a chest radiograph \(Modality {modality}\)"):
        read(tmp_path, SOPClassUID=SecondaryCaptureImageStorage, Modality=modality)


def test_a_missing_sop_class_is_taken_from_the_file_meta_information(tmp_path):
    dataset = make_dicom(IMAGE)
    dataset.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    del dataset.SOPClassUID
    dataset.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    with pytest.raises(ImageError, match="SOP class Segmentation Storage"):
        read_image(tmp_path / "b.dcm")


@pytest.mark.parametrize(
    "uid",
    [
        ComputedRadiographyImageStorage,
        SecondaryCaptureImageStorage,
        XRayRadiofluoroscopicImageStorage,
        "1.3.46.670589.99",
    ],
)
def test_sop_classes_of_radiographs_captures_and_vendors_are_read(uid, tmp_path, caplog):
    assert np.array_equal(read(tmp_path, SOPClassUID=uid), IMAGE)
    assert not caplog.records


@pytest.mark.parametrize(
    "tags",
    [{"PresentationIntentType": "FOR PROCESSING"}, {"SOPClassUID": DigitalXRayImageStorageForProcessing}],
)
def test_an_image_for_processing_is_read_with_a_warning(tags, tmp_path, caplog):
    assert np.array_equal(read(tmp_path, **tags), IMAGE)
    assert "FCX-W208 'a.dcm': an image FOR PROCESSING" in caplog.text


@pytest.mark.parametrize(("photometric", "wrong"), [("MONOCHROME2", "INVERSE"), ("MONOCHROME1", "IDENTITY")])
def test_contradictory_tags_cause_a_warning_and_the_required_one_is_used(photometric, wrong, tmp_path, caplog):
    shown = read(tmp_path, PhotometricInterpretation=photometric, PresentationLUTShape=wrong)
    assert f"FCX-W209 'a.dcm': {photometric} contradicts PresentationLUTShape {wrong}" in caplog.text
    assert np.array_equal(shown, IMAGE if photometric == "MONOCHROME2" else 255 - IMAGE)


def test_the_pairs_of_tags_in_the_standard_cause_one_inversion_and_no_warning(tmp_path, caplog):
    ready = {"PresentationIntentType": "FOR PRESENTATION"}
    one = read(tmp_path, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE", **ready)
    two = read(tmp_path, PresentationLUTShape="IDENTITY", **ready)
    assert np.array_equal(one, 255 - IMAGE)
    assert np.array_equal(two, IMAGE)
    assert not caplog.records


def test_a_window_that_clips_most_of_the_image_causes_a_warning(tmp_path, caplog):
    read(tmp_path, WindowCenter=10, WindowWidth=30)
    assert "FCX-W210 'a.dcm': the window or VOI LUT shows most of the image as white" in caplog.text


def test_burned_in_annotation_causes_a_warning(tmp_path, caplog):
    read(tmp_path, BurnedInAnnotation="NO")
    assert not caplog.records
    read(tmp_path, BurnedInAnnotation="YES")
    assert "FCX-W214 'a.dcm': BurnedInAnnotation is YES" in caplog.text


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_12_bit_values_in_16_stored_bits_cause_a_warning_without_a_window(photometric, tmp_path, caplog):
    stored = IMAGE.astype(np.uint16) * 16
    read(tmp_path, stored, BitsStored=12, PhotometricInterpretation=photometric)
    read(tmp_path, stored, WindowCenter=2048, WindowWidth=4096, PhotometricInterpretation=photometric)
    read(tmp_path, stored * 16, PhotometricInterpretation=photometric)
    assert not caplog.records
    stored[:3, :3] = 65_535  # a marker
    read(tmp_path, stored, PhotometricInterpretation=photometric)
    assert "FCX-W216 'a.dcm': no window, and the values use less than 12.5% of the range" in caplog.text


def test_padding_does_not_count_as_used_range(tmp_path, caplog):
    stored = IMAGE.astype(np.uint16) * 16
    stored[:, :20] = 65_535
    read(tmp_path, stored, PixelPaddingValue=65_535)
    assert "FCX-W216" in caplog.text
