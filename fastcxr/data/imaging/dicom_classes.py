"""Check by its SOP class that a DICOM holds a radiograph, and warn of gray levels that need attention."""

from pydicom import Dataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    XRayAngiographicImageStorage,
    XRayRadiofluoroscopicImageStorage,
)

from fastcxr.data.imaging.sniff import warn_once
from fastcxr.errors import ImageError

STANDARD_CLASSES = "1.2.840.10008.5.1.4.1.1."  # prefix of the storage classes of the standard; vendors have others
RADIOGRAPH_CLASSES = (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    XRayAngiographicImageStorage,
    XRayRadiofluoroscopicImageStorage,
)
# the PresentationLUTShape that DICOM PS3.3 prescribes for each PhotometricInterpretation (General Image and DX Image)
SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}


def validate_sop_class(header: Dataset, path: str) -> None:
    """Raise ImageError for segmentations, doses, maps and all other images with an SOP class of their own.

    A missing SOP class and the private classes of vendors are accepted.
    """
    uid = _read_sop_class(header)
    if uid.startswith(STANDARD_CLASSES) and uid not in RADIOGRAPH_CLASSES:
        what = f"not a chest radiograph (SOP class {format_sop_class(header)})"
        raise ImageError(what, "Leave it out", path=path, code="E126")


def warn_gray_levels(header: Dataset, path: str) -> None:
    """Warn of an image for processing, and of a header that contradicts itself about inversion."""
    intent = str(header.get("PresentationIntentType") or "").strip().upper()
    if intent == "FOR PROCESSING" or _read_sop_class(header) == DigitalXRayImageStorageForProcessing:
        text = "an image FOR PROCESSING: its gray levels differ from those of images FOR PRESENTATION"
        warn_once("W208", path, f"{text}; it is read. Use the image FOR PRESENTATION where there is one")
    photometric, shape = header.PhotometricInterpretation, str(header.get("PresentationLUTShape") or "").strip()
    if photometric in SHAPES and shape in SHAPES.values() and shape != SHAPES[photometric]:
        # viewers differ here; PhotometricInterpretation is the attribute that every image must have
        text = f"{photometric} contradicts PresentationLUTShape {shape}: the image may be inverted"
        warn_once("W209", path, f"{text}; it is read as {photometric}. Check that bones are white, or export it again")


def format_sop_class(header: Dataset) -> str:
    """Return the name of a known SOP class, else "unknown": a damaged header may hold anything, even a patient name."""
    uid = UID(_read_sop_class(header))
    return uid.name if uid.name != uid else "unknown"


def _read_sop_class(header: Dataset) -> str:
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
