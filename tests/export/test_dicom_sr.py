"""Structured reports: valid for dciodvfy, readable for dsrdump, and complete."""

import pytest
from dicom_studies import ALGORITHM, NEVER_COPIED, PATIENT, list_problems, make_radiograph, make_result, print_report
from pydicom import dcmread
from pydicom.uid import ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation
from sample_images import save_dicom

from fastcxr.data.imaging.read import read_image
from fastcxr.errors import ImageError
from fastcxr.export.dicom_attributes import COPIED_TAGS, NewInstance, make_uid, read_source
from fastcxr.export.dicom_sr import make_sr
from fastcxr.export.image_results import RESEARCH_TEXT

pytestmark = pytest.mark.needs("highdicom")
LONG_LABELS = ("Übergroße Verschattung " * 10, "Übergroße Verschattung " * 10 + "2", "肺炎" * 40, "a\\b\nc")


def write_sr(folder, result, **tags):
    """Write the SR of a radiograph with these tags, and return its path."""
    path = save_dicom(folder / "source.dcm", make_radiograph(**tags))
    source = read_source(str(path), "source.dcm")
    report = make_sr(source, result, ALGORITHM, NewInstance(make_uid(str(folder)), 3))
    report.save_as(folder / "sr.dcm")
    return folder / "sr.dcm"


def list_numbers(path, name):
    """Return the exact values of the numbers with a name."""
    groups = dcmread(path).ContentSequence[-1].ContentSequence
    items = [item for group in groups for item in group.ContentSequence if item.ValueType == "NUM"]
    named = [item for item in items if item.ConceptNameCodeSequence[0].CodeMeaning == name]
    return [item.MeasuredValueSequence[0].FloatingPointValue for item in named]


@pytest.mark.needs(program="dciodvfy")
@pytest.mark.parametrize(
    ("result", "tags"),
    [
        (make_result(), {}),
        (make_result(is_ood=True), {"SOPClassUID": DigitalXRayImageStorageForPresentation, "Modality": "DX"}),
        (make_result(is_multi_label=True), {"Modality": "DR", "PhotometricInterpretation": "MONOCHROME1"}),
        (make_result(is_multi_label=True, is_ood=True), {"PatientName": "DOE, JANE", "PatientSex": "X"}),
        (make_result(*LONG_LABELS), {"StudyDate": None, "StudyTime": "99", "PatientID": "x" * 65}),
        (make_result(ood_score=None, warnings="FCX-W209 text"), dict.fromkeys([*COPIED_TAGS, *NEVER_COPIED])),
    ],
    ids=["classes", "ood", "findings", "ood-findings", "long", "minimal"],
)
def test_dciodvfy_finds_no_error(tmp_path, result, tags):
    assert list_problems(write_sr(tmp_path, result, **tags)) == []


@pytest.mark.needs(program="dsrdump")
def test_dsrdump_shows_finding_probability_decision_and_algorithm(tmp_path):
    text = print_report(write_sr(tmp_path, make_result(is_multi_label=True)))
    for line in (
        '"Procedure reported")=(36554-4,LN,"XR Chest Single View")',
        '"Finding")=(233604007,SCT,"Pneumonia")', '"Probability")="0.9" (1,UCUM,"no units")',
        '"Decision threshold")="0.5"', '"Decision")=(FCX_REACHED,99FASTCXR,"Threshold reached")',
        '"Presence of the finding by the model")=(52101004,SCT,"Present")', '"Algorithm Name")="fastcxr timm:resnet50"',
        f'"Algorithm Parameters")="{ALGORITHM.parameters[0]}"', f'"Comment")="{RESEARCH_TEXT}"',
        '"Observer Type")=(121007,DCM,"Device")', "Source of Measurement", '"In distribution")=(373066001,SCT,"Yes")',
    ):  # fmt: skip
        assert line in text, line


def test_a_probability_has_full_precision(tmp_path):
    result = make_result("a", "b", "c")
    path = write_sr(tmp_path, result)
    assert list_numbers(path, "Probability") == [one.probability for one in result.labels]
    assert list_numbers(path, "Decision threshold") == [0.5, 0.5]


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_an_out_of_distribution_image_has_no_decision_and_no_class(tmp_path, is_multi_label):
    text = str(dcmread(write_sr(tmp_path, make_result(is_ood=True, is_multi_label=is_multi_label))))
    assert "No decision: out-of-distribution image" in text
    assert "Threshold reached" not in text and "'Present'" not in text and "'Absent'" not in text
    assert ("Predicted class" in text) != is_multi_label


def test_the_report_has_the_patient_and_study_of_the_source_and_nothing_else(tmp_path):
    path = write_sr(tmp_path, make_result())
    report, source = dcmread(path), dcmread(tmp_path / "source.dcm")
    assert (report.PatientName, report.PatientID, report.PatientAge) == (PATIENT["PatientName"], "ZZTESTID", "062Y")
    assert report.StudyInstanceUID == source.StudyInstanceUID and report.SpecificCharacterSet == "ISO_IR 192"
    assert source.SeriesInstanceUID != report.SeriesInstanceUID and report.InstanceNumber == 3
    reference = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert reference.SeriesInstanceUID == source.SeriesInstanceUID
    item = reference.ReferencedSOPSequence[0]
    assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (
        ComputedRadiographyImageStorage,
        source.SOPInstanceUID,
    )
    content = path.read_bytes()
    assert not [text for text in NEVER_COPIED.values() if text.encode() in content]
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    with pytest.raises(ImageError, match="a structured report|a result of fastcxr"):
        read_image(path)
