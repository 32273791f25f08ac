"""Check SOP class and origin of a DICOM file, and warn about header tags that make its gray levels doubtful."""

from pydicom import Dataset, uid

from fastcxr.data.imaging.sniff import warn_once
from fastcxr.errors import ImageError

STANDARD_CLASSES = "1.2.840.10008.5.1.4.1.1."  # prefix of the standard storage classes; vendors use other prefixes
RADIOGRAPH_CLASSES = (
    uid.ComputedRadiographyImageStorage,
    uid.DigitalXRayImageStorageForPresentation,
    uid.DigitalXRayImageStorageForProcessing,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
    uid.XRayAngiographicImageStorage,
    uid.XRayRadiofluoroscopicImageStorage,
)
OWN_MANUFACTURER = "fastcxr"  # of the DICOM results that fastcxr writes
# the PresentationLUTShape that DICOM PS3.3 prescribes for each PhotometricInterpretation (General Image and DX Image)
SHAPES = {"MONOCHROME1": "INVERSE", "MONOCHROME2": "IDENTITY"}


def validate_sop_class(header: Dataset, path: str) -> None:
    """Raise ImageError for a standard SOP class that is not used for radiographs, as for segmentations and doses.

    A missing SOP class and the private classes of vendors are accepted.
    """
    sop_class = _read_sop_class(header)
    if sop_class.startswith(STANDARD_CLASSES) and sop_class not in RADIOGRAPH_CLASSES:
        problem = f"not a chest radiograph (SOP class {format_sop_class(header)})"
        raise ImageError(problem, "Leave it out", path=path, code="E126")


def reject_own_results(header: Dataset, path: str) -> None:
    """Raise ImageError for a file that fastcxr wrote: a study from a PACS has the earlier results as well."""
    if str(header.get("Manufacturer") or "").strip().lower() == OWN_MANUFACTURER:
        raise ImageError("a result of fastcxr, not a radiograph", "Leave it out", path=path, code="E126")


def warn_gray_levels(header: Dataset, path: str) -> None:
    """Warn about an image FOR PROCESSING, and about contradictory tags for inversion."""
    intent = str(header.get("PresentationIntentType") or "").strip().upper()
    if intent == "FOR PROCESSING" or _read_sop_class(header) == uid.DigitalXRayImageStorageForProcessing:
        text = "an image FOR PROCESSING: its gray levels differ from those of images FOR PRESENTATION"
        warn_once("W208", path, f"{text}. Use the image FOR PRESENTATION if there is one")
    photometric, shape = header.PhotometricInterpretation, str(header.get("PresentationLUTShape") or "").strip()
    if photometric in SHAPES and shape in SHAPES.values() and shape != SHAPES[photometric]:
        # viewers differ in this case; PhotometricInterpretation is the attribute that every image must have
        text = f"{photometric} contradicts PresentationLUTShape {shape}: the image may be inverted"
        warn_once("W209", path, f"{text}; it is read as {photometric}. Check that bones are white, or export it again")


def warn_burned_in(header: Dataset, path: str) -> None:
    """Warn about an image whose header states that its pixels contain text, which may be the name of the patient."""
    if str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        text = "BurnedInAnnotation is YES: the pixels may contain the name of the patient"
        warn_once("W214", path, f"{text}. Check them before you share images or maps")


def format_sop_class(header: Dataset) -> str:
    """Return the name of a known SOP class, else "unknown": a damaged value may contain a patient name."""
    sop_class = uid.UID(_read_sop_class(header))
    return sop_class.name if sop_class.name != sop_class else "unknown"


def _read_sop_class(header: Dataset) -> str:
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
