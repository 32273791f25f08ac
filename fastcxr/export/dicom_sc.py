"""A DICOM Secondary Capture with the saliency map of one image, as an image with text burned in.

The text has the decision, the model and its critical notices, and no patient: BurnedInAnnotation states whether the
pixels identify a patient (PS3.3, C.7.6.1), so it is that of the source image. PixelSpacing is left out, because the
radiograph is resized. Names of classes that the font cannot draw are complete in DerivationDescription.
"""

from typing import Any

import numpy as np
from pydicom import Dataset

from fastcxr.data.imaging.dicom_classes import OWN_MANUFACTURER
from fastcxr.export import dicom_codes as own
from fastcxr.export.dicom_attributes import OPTIONAL_TAGS, NewInstance, import_highdicom, make_uid
from fastcxr.export.image_results import RESEARCH_TEXT, Algorithm, ImageResult

SC_SERIES_NUMBER = 9902
MAX_DESCRIPTION_BYTES = 1024  # of the VR ST
MAX_LISTED_LABELS = 5  # in the description


def make_sc(
    source: Dataset,
    result: ImageResult,
    pixels: np.ndarray,
    algorithm: Algorithm,
    instance: NewInstance,
    *,
    method: str,
) -> Any:
    """Return the Secondary Capture of one image, a highdicom.sc.SCImage.

    Args:
        source: attributes of the source image; see dicom_attributes.read_source.
        result: of the image.
        pixels: RGB bytes, shape (height, width, 3).
        algorithm: the model.
        instance: UID and number of the new object.
        method: name of the attribution method.

    Raises PackageError if highdicom is not installed.
    """
    highdicom = import_highdicom()
    capture = highdicom.sc.SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # replaced below
        study_instance_uid=source.StudyInstanceUID,
        series_instance_uid=make_uid(source.StudyInstanceUID, algorithm.checksum, "SC"),
        series_number=SC_SERIES_NUMBER,
        sop_instance_uid=instance.uid,
        instance_number=instance.number,
        manufacturer=OWN_MANUFACTURER,
        manufacturer_model_name=own.shorten_meaning(algorithm.name),
        device_serial_number=algorithm.checksum[: own.MAX_MEANING_LENGTH],
        software_versions=algorithm.version,
        series_description=f"fastcxr saliency map. {RESEARCH_TEXT}",
        specific_character_set="ISO_IR 192",
        patient_id=source.PatientID,
        patient_name=source.PatientName,
        patient_birth_date=source.PatientBirthDate or None,
        patient_sex=source.PatientSex,
        accession_number=source.AccessionNumber,
        study_id=source.StudyID,
        study_date=source.StudyDate or None,
        study_time=source.StudyTime or None,
    )
    for name in OPTIONAL_TAGS:
        if name in source:
            setattr(capture, name, source[name].value)
    capture.ConversionType = "WSD"
    capture.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    capture.PatientOrientation = None  # unknown: the header of many radiographs does not state it
    capture.BodyPartExamined = "CHEST"  # Laterality is required unless the body part is one that is not paired
    capture.DerivationDescription = _describe(result, algorithm, method)
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    purpose = own.SOURCE_IMAGE
    reference.PurposeOfReferenceCodeSequence = [
        highdicom.sr.CodedConcept(purpose.value, purpose.scheme_designator, purpose.meaning)
    ]
    capture.SourceImageSequence = [reference]
    return capture


def _describe(result: ImageResult, algorithm: Algorithm, method: str) -> str:
    top = result.top
    parts = [
        RESEARCH_TEXT,
        *(f"Critical: {notice}" for notice in algorithm.notices),
        result.describe(MAX_LISTED_LABELS),
        f"Saliency map ({method}) of {algorithm.name} for {top.label}",
        f"probability {top.probability:.6g}",
        *algorithm.parameters,
    ]
    text = own.clean_value("; ".join(parts)).encode()[:MAX_DESCRIPTION_BYTES]
    return text.decode(errors="ignore")
