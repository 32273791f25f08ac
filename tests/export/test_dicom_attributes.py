"""Attributes of the source image: corrected where their meaning is certain, otherwise empty."""

import warnings

import numpy as np
import pytest
from dicom_studies import NEVER_COPIED, ROOT, make_radiograph
from sample_images import save_dicom

from fastcxr.data.imaging.memory import FileInMemory
from fastcxr.errors import DataError
from fastcxr.export import dicom_attributes as module
from fastcxr.export.dicom_attributes import COPIED_TAGS, OPTIONAL_TAGS, UID_TAGS, examine_file, read_source


@pytest.mark.parametrize(
    ("tag", "value", "expected"),
    [
        ("PatientAge", "62", "062Y"), ("PatientAge", "62Y", "062Y"), ("PatientAge", "5", "005Y"),
        ("PatientAge", "3M", "003M"), ("PatientAge", "062y", "062Y"), ("PatientAge", "0000062Y", "062Y"),
        ("PatientAge", "1234", ""), ("PatientAge", "62.5", ""), ("PatientAge", "Y", ""), ("PatientAge", "-3", ""),
        ("PatientName", "Doe^Jane", "Doe^Jane"), ("PatientName", "DOE JANE", "DOE JANE^"),
        ("PatientName", "a^b^c^d^e^f^g", "a^b^c^d^e f g"), ("PatientName", "a\\b\x00\n", "a b^"),
        ("PatientName", "", ""),
        ("PatientName", "Yamada^Tarou=山田^太郎=やまだ^たろう=x", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("PatientName", "x" * 70, "x" * 63 + "^"), ("PatientName", "^^", ""),
        ("PatientID", " 17 ", "17"), ("PatientID", "x" * 65, ""), ("PatientID", "a\\b", ""),
        ("PatientID", "a\x1bb", "ab"),
        ("AccessionNumber", "x" * 17, ""), ("StudyID", "x" * 16, "x" * 16),
        ("PatientSex", "m", "M"), ("PatientSex", "Female", "F"), ("PatientSex", "U", ""),
        ("StudyDate", "20200230", ""), ("StudyDate", "2020-02-29", "20200229"), ("StudyDate", "2020.02.29", "20200229"),
        ("StudyDate", "2020-0229", ""), ("StudyDate", "00000000", ""), ("PatientBirthDate", "19010101", "19010101"),
        ("StudyTime", "101112.5", "101112.5"), ("StudyTime", "10:11", "1011"), ("StudyTime", "25", ""),
        ("StudyTime", "000000.00", "000000.00"), ("StudyTime", "1060", ""), ("StudyTime", "10:1112", "101112"),
        ("BurnedInAnnotation", "yes", "YES"), ("BurnedInAnnotation", "MAYBE", ""), ("LossyImageCompression", "1", ""),
    ],
)  # fmt: skip
def test_a_value_is_corrected_or_empty(tag, value, expected):
    assert COPIED_TAGS[tag](value) == expected
    assert COPIED_TAGS[tag](expected) == expected, "a valid value stays"


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192", "ISO_IR 126"])
def test_only_the_listed_attributes_are_read_with_their_character_set(tmp_path, charset):
    name = {"ISO_IR 126": "Παπαδόπουλος^Α"}.get(charset, "Müller^Ana")
    dataset = make_radiograph(SpecificCharacterSet=charset, PatientName=name, PatientAge="62", OtherPatientIDs="ZZ")
    dataset.private_block(0x99, "ZZ", create=True).add_new(1, "LO", "ZZ")
    source = read_source(str(save_dicom(tmp_path / "a.dcm", dataset)), "a.dcm")
    assert str(source.PatientName) == name and source.PatientAge == "062Y"
    assert {element.keyword for element in source} <= set(COPIED_TAGS) | set(UID_TAGS)
    assert not set(NEVER_COPIED) & set(source.dir())


def test_missing_attributes_are_empty_or_left_out(tmp_path):
    names = [*COPIED_TAGS, "SpecificCharacterSet", *NEVER_COPIED]
    path = save_dicom(tmp_path / "a.dcm", make_radiograph(**dict.fromkeys(names)))
    source = read_source(str(path), "a.dcm")
    assert {name: str(source[name].value) for name in COPIED_TAGS if name in source} == dict.fromkeys(
        set(COPIED_TAGS) - set(OPTIONAL_TAGS), ""
    )


@pytest.mark.parametrize(
    ("tags", "lost"),
    [
        ({"PatientName": "x" * 90, "PatientID": "1" * 80}, ("PatientID", "PatientName")),
        ({"PatientID": "1\\2", "PatientAge": "old", "StudyDate": "2020"}, ("PatientID", "PatientAge", "StudyDate")),
        ({"PatientName": "A^B^C^D^E^F", "PatientSex": "female", "PatientID": " 7 ", "BurnedInAnnotation": "x"}, ()),
        ({"PatientName": "A=B=C=D"}, ("PatientName",)), ({"PatientName": "^^", "PatientID": " ", "PatientAge": ""}, ()),
    ],
)  # fmt: skip
def test_values_that_a_result_has_not_are_named_the_identifier_first(tmp_path, tags, lost):
    assert examine_file(str(save_dicom(tmp_path / "a.dcm", make_radiograph(**tags)))).lost_tags == lost


def test_a_value_that_cannot_be_decoded_is_empty(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", make_radiograph(PatientID="17"))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00FD"))
    assert path.read_bytes() != content and read_source(str(path), "a.dcm").PatientID == ""


@pytest.mark.parametrize(
    ("tag", "value", "problem"),
    [
        ("StudyInstanceUID", None, "has no StudyInstanceUID"),
        ("SeriesInstanceUID", "", "has no SeriesInstanceUID"),
        ("SOPInstanceUID", "1.02.3", "SOPInstanceUID of the DICOM header is not a valid UID"),
        ("StudyInstanceUID", "1." + "2" * 64, "StudyInstanceUID of the DICOM header is not a valid UID"),
        ("StudyInstanceUID", "9.2", "StudyInstanceUID of the DICOM header is not a valid UID"),
        ("SOPClassUID", "1.2.3.4", "SOP class of the DICOM header is not one of radiographs"),
    ],
)
def test_an_image_without_valid_uids_has_no_result_and_no_value_in_the_error(tmp_path, tag, value, problem):
    path = save_dicom(tmp_path / "a.dcm", make_radiograph(**{tag: value}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # those of pydicom quote the value
        assert problem in examine_file(str(path)).problem
        with pytest.raises(DataError, match=problem) as error:
            read_source(str(path), "a.dcm")
    assert ("with its UIDs" in error.value.fix) != (tag == "SOPClassUID")
    assert error.value.code == "E722" and "a.dcm" in str(error.value) and (not value or value not in str(error.value))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG file"),
        ("a.jpg", b"\xff\xd8\xff" + bytes(100), "a JPEG file"),
        ("a.dcm", b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG file"), ("a.txt", b"text", "not a DICOM file"),
        ("a.dcm", b"", ""), ("a.dcm", b"text", ""), ("a", bytes(128) + b"DICM", ""),
    ],
)  # fmt: skip
def test_a_file_of_another_format_is_refused_and_an_unreadable_one_is_not(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    found = examine_file(str(tmp_path / name)).problem
    assert found.startswith(problem) if problem else found == ""


def test_packed_images_and_images_in_memory_are_refused():
    assert "packed image" in examine_file("cohort.h5#17").problem
    assert "in memory" in examine_file(FileInMemory("a.dcm", b"")).problem


def test_a_uid_is_valid_and_depends_on_each_text():
    uids = {module.make_uid(*names) for names in (("a", "b"), ("ab", ""), ("b", "a"))}
    assert len(uids) == 3 and module.make_uid("a", "b") in uids
    assert all(len(uid) <= 64 and np.char.isdigit(uid.removeprefix("2.25.")) for uid in uids)
    assert ROOT not in "".join(uids)
