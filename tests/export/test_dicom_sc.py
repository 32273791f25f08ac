"""Secondary captures of saliency maps: valid for dciodvfy, and with legible text outside of the radiograph."""

from dataclasses import replace

import numpy as np
import pytest
from dicom_studies import ALGORITHM, NEVER_COPIED, list_problems, make_radiograph, make_result
from pydicom import dcmread
from sample_images import save_dicom

from fastcxr.data.imaging.read import read_image
from fastcxr.errors import ImageError
from fastcxr.export import saliency_image as module
from fastcxr.export.dicom_attributes import COPIED_TAGS, NewInstance, make_uid, read_source
from fastcxr.export.dicom_sc import make_sc
from fastcxr.export.image_results import RESEARCH_TEXT
from fastcxr.export.saliency_image import draw_saliency_image, load_font, replace_missing_glyphs, wrap_text
from fastcxr.inference.saliency_maps import GAP_PIXELS, SaliencyMap

LABEL = "Pneumonia"


def make_map(size=64, label=LABEL, **changes):
    image = np.full((size, size), 90, np.uint8)
    saliency = np.zeros((size, size))
    saliency[: size // 2] = np.linspace(0, 1, size)
    usual = {"class_name": label, "probability": 0.9, "image": image, "saliency": saliency}
    return SaliencyMap(source="", path="", **usual | changes)


def write_sc(folder, result, saliency_map, **tags):
    """Write the secondary capture of a radiograph with these tags, and return its path."""
    path = save_dicom(folder / "source.dcm", make_radiograph(**tags))
    pixels = draw_saliency_image(saliency_map, result, ALGORITHM, method="grad_cam")
    instance = NewInstance(make_uid(str(folder)), 3)
    make_sc(read_source(str(path), ""), result, pixels, ALGORITHM, instance, method="grad_cam").save_as(
        folder / "sc.dcm"
    )
    return folder / "sc.dcm"


@pytest.mark.needs("highdicom", program="dciodvfy")
@pytest.mark.parametrize(
    ("result", "tags"),
    [
        (make_result(), {"BurnedInAnnotation": "NO", "LossyImageCompression": "01", "Laterality": "U"}),
        (make_result(is_ood=True), {"PhotometricInterpretation": "MONOCHROME1", "PatientName": "DOE"}),
        (make_result(LABEL, "肺炎 " * 40, is_multi_label=True), dict.fromkeys([*COPIED_TAGS, *NEVER_COPIED])),
    ],
    ids=["classes", "ood", "minimal"],
)
def test_dciodvfy_finds_no_error(tmp_path, result, tags):
    assert list_problems(write_sc(tmp_path, result, make_map(), **tags)) == []


@pytest.mark.needs("highdicom")
def test_the_capture_refers_to_its_source_and_has_no_spacing(tmp_path):
    path = write_sc(tmp_path, make_result(), make_map(), PixelSpacing=[0.1, 0.1], BurnedInAnnotation="YES")
    capture, source = dcmread(path), dcmread(tmp_path / "source.dcm")
    assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert capture.StudyInstanceUID == source.StudyInstanceUID and capture.PatientAge == "062Y"
    assert "PixelSpacing" not in capture and "Laterality" not in capture and capture.BurnedInAnnotation == "YES"
    assert RESEARCH_TEXT in capture.DerivationDescription and "grad_cam" in capture.DerivationDescription
    assert f"; Critical: {ALGORITHM.notices[0]}; Pneumonia: probability 0.900" in capture.DerivationDescription
    assert capture.pixel_array.dtype == np.uint8 and capture.PhotometricInterpretation == "RGB"
    assert not [text for text in NEVER_COPIED.values() if text.encode() in path.read_bytes()]
    with pytest.raises(ImageError, match="a result of fastcxr, not a radiograph. Leave it out") as error:
        read_image(path)
    assert error.value.code == "E126"


@pytest.mark.parametrize("size", [32, 512, 1500])
def test_the_text_covers_no_pixel_of_the_image_and_is_legible(size):
    pixels = draw_saliency_image(make_map(size), make_result(), ALGORITHM, method="grad_cam")
    side = min(max(size, 512), 1024)
    assert pixels.shape[1] == 2 * side + GAP_PIXELS
    rows = np.flatnonzero((pixels[:, : side - 20] == 90).all(axis=(1, 2)))
    assert len(rows) == side and np.ptp(rows) == side - 1, "the left panel is the image alone"
    strips = pixels[: rows[0]], pixels[rows[-1] + 1 :]
    for strip in strips:
        n_text_rows = (strip > 200).any(axis=2).any(axis=1).sum()
        assert n_text_rows >= 14 and len(strip) < 0.2 * side
    assert (strips[1][-22:, ..., 2] < 200).all() and (strips[1][-22:] > 200).any(), "the warning is yellow"


def test_a_map_without_evidence_shows_the_image_twice_and_states_it():
    empty = make_map(saliency=np.zeros((64, 64)))
    pixels = draw_saliency_image(empty, make_result(), ALGORITHM, method="grad_cam")
    assert (pixels[300, :512] == pixels[300, 516:]).all()
    assert empty.note in show(make_result(), empty) and empty.note


def show(result, saliency_map=None):
    """Return the lines of text of a capture."""
    with pytest.MonkeyPatch.context() as patch:
        lines, draw = [], module._draw_strip
        patch.setattr(module, "_draw_strip", lambda strip, width: lines.extend(strip) or draw(strip, width))
        draw_saliency_image(saliency_map or make_map(label=result.top.label), result, ALGORITHM, method="occlusion")
    return [text for text, _, _ in lines]


def set_labels(result, **changes):
    return replace(result, labels=tuple(replace(one, **changes) for one in result.labels))


def test_the_text_has_decision_notices_panels_model_and_purpose():
    caption = "Left: the image. Right: saliency map (occlusion) of Pneumonia, probability 0.900"
    model = f"Model: {ALGORITHM.name}, version 0.1"
    assert show(make_result()) == [
        "Pneumonia: probability 0.900, threshold 0.500 reached",
        f"Critical: {ALGORITHM.notices[0]}",
        f"{caption}, threshold 0.500",
        model,
        RESEARCH_TEXT,
    ]
    first, *_, second, third, fourth = show(make_result(is_ood=True))
    assert first == "Out-of-distribution image: no decision", "no class before this"
    assert [second, third, fourth] == [caption, model, RESEARCH_TEXT]


def test_the_decision_counts_and_lists_what_reaches_its_threshold():
    assert make_result(is_uncertain=True).describe(9).endswith("; uncertain: below the abstention threshold")
    classes, findings = make_result(is_uncertain=True), make_result(is_multi_label=True)
    both = set_labels(classes, is_reached=True).describe(2)
    assert both.endswith("; uncertain: threshold reached by 3 classes: Pneumonia 0.900, Covid-19 0.300 and 1 more")
    none = set_labels(classes, is_reached=False).describe(2)
    assert none.endswith("threshold 0.500 not reached; uncertain: threshold reached by no class")
    assert set_labels(make_result(), threshold=None, is_reached=None).describe(2) == "Pneumonia: probability 0.900"
    assert findings.describe(9) == "Threshold reached by 1 of 2 findings: Pneumonia 0.900"
    none = set_labels(findings, is_reached=False).describe(9)
    assert none == "Threshold reached by 0 of 2 findings; most probable: Pneumonia 0.900"
    names = [f"finding {k} of the lung" for k in range(40)]
    many = set_labels(make_result(*names, is_multi_label=True), is_reached=True, threshold=0)
    lines = [text for text in show(many) if not text.startswith(("Critical", "Left", "Model"))]
    assert len(lines) == 4 and lines[0].startswith(f"Threshold reached by 40 of 40 findings: {names[0]} 0.900")
    assert " more" in lines[2] and "..." not in "".join(lines), "names are complete, and the others counted"


@pytest.mark.parametrize("text", ["x" * 2000, "word " * 400, "short", "", "a" + "肺炎" * 300])
def test_a_long_text_has_three_lines_with_its_beginning_and_end(text):
    font = load_font(22)
    lines = wrap_text(f"{text}: probability 0.123", font, 1028)
    assert 1 <= len(lines) <= 3 and all(font.getlength(line) <= 1028 for line in lines)
    joined = "".join(lines).replace(" ", "")
    assert joined.endswith("probability0.123") and joined[:1] == (text or ":")[:1]


@pytest.mark.parametrize("has_matplotlib", [True, False])
def test_characters_without_a_glyph_are_question_marks(monkeypatch, has_matplotlib):
    if not has_matplotlib:
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    font = load_font(22)
    assert replace_missing_glyphs("Abc 0.9: 肺", font) == "Abc 0.9: ?"
    assert replace_missing_glyphs("Ü", font) == ("Ü" if has_matplotlib else "?")
