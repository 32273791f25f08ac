"""DICOM results of predictions: one per readable image, also after an interruption, and equal to the CSV."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from dicom_studies import ROOT, make_plain_report, make_radiograph, write_radiographs
from mean_export import write_mean_export
from pydicom import dcmread
from random_classifiers import make_random_classifier
from sample_images import save_dicom
from served_models import GrayScorer
from started_processes import make_environment

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.image_table import make_image_table
from fastcxr.errors import BusyError, DataError, ModelError, OutputError, PackageError, RecipeError, StorageError
from fastcxr.inference import explain as explain_module
from fastcxr.inference import predict as predict_module
from fastcxr.inference.torch_scorer import TorchScorer
from fastcxr.io.lock import directory_lock
from fastcxr.metrics.predictions import read_predictions
from fastcxr.progress.base import Progress
from fastcxr.workflows import dicom_results
from fastcxr.workflows.critical_notices import list_critical_notices
from fastcxr.workflows.dicom_folders import STATE_FILE, DicomFolders
from fastcxr.workflows.dicom_results import (
    describe_algorithm,
    open_dicom_results,
    reject_other_images,
    write_dicom_results,
)
from fastcxr.workflows.prediction import PredictionOptions, describe_prediction, write_prediction_csv
from fastcxr.workflows.saliency_source import make_map_source

pytestmark = pytest.mark.needs("highdicom")
N_IMAGES, BROKEN, BLOCK = 5, 2, 2


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Radiographs from dark to bright, of which one is truncated."""
    return write_radiographs(tmp_path_factory.mktemp("images"), N_IMAGES, BROKEN)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(predict_module, "BLOCK_IMAGES", BLOCK)
    monkeypatch.setattr(GrayScorer, "batch_size", BLOCK)


@pytest.fixture
def plain_reports(monkeypatch):
    """Write small files as reports: the test is about the files."""
    monkeypatch.setattr(dicom_results, "make_sr", make_plain_report)


def write(images, csv, scorer=None, **folders):
    """Predict the images to a CSV and DICOM results, as the command does."""
    scorer, table = scorer or GrayScorer(), make_image_table([images])
    description = describe_prediction(images, scorer, table, hash_names=False)
    algorithm = describe_algorithm(images, scorer, description["model"], list_critical_notices(images, scorer))
    with open_dicom_results(DicomFolders(**folders, csv=csv), scorer, table, algorithm, description) as results:
        options = PredictionOptions(see_block=lambda block, rows: results.add(block, rows, Progress()))
        write_prediction_csv(scorer, table, csv, description | {"dicom": results.uids}, Progress(), options)
        return results.finish()


def read_results(folder):
    """Return the results by the number of their source image."""
    found = [dcmread(path) for path in sorted(folder.iterdir())]
    assert all(path.stem == one.SOPInstanceUID for path, one in zip(sorted(folder.iterdir()), found, strict=True))
    numbers = [int(one.StudyInstanceUID.removeprefix(f"{ROOT}.").split(".")[0]) for one in found]
    assert len(set(numbers)) == len(numbers), "each image has one result"
    return dict(zip(numbers, found, strict=True))


def read_probabilities(report):
    groups = report.ContentSequence[-1].ContentSequence[1:]
    return [item.MeasuredValueSequence[0].FloatingPointValue for group in groups for item in group.ContentSequence
            if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == "Probability"]  # fmt: skip


@pytest.mark.parametrize("task", [GrayScorer.task, MULTI_LABEL])
def test_each_readable_image_has_one_report_with_the_probabilities_of_the_csv(images, tmp_path, monkeypatch, task):
    monkeypatch.setattr(GrayScorer, "task", task)
    assert write(images, tmp_path / "out.csv", dicom_sr=tmp_path / "sr") == {"SR": N_IMAGES - 1}
    reports, predictions = read_results(tmp_path / "sr"), read_predictions(tmp_path / "out.csv")
    assert set(reports) == set(range(N_IMAGES)) - {BROKEN}
    for number, report in reports.items():
        assert read_probabilities(report) == predictions.probability[number].tolist()
        assert report.InstanceNumber == number + 1
    assert len({report.SeriesInstanceUID for report in reports.values()}) == N_IMAGES - 1, "one series per study"
    assert all(path.name.startswith("2.25.") for path in (tmp_path / "sr").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "sr"]


class Killed(BaseException):
    """The process was killed."""


@pytest.mark.usefixtures("plain_reports")
@pytest.mark.parametrize("n_before", [0, 1, 3])
def test_a_repeated_command_continues_with_one_report_per_image(images, tmp_path, monkeypatch, n_before):
    make_sr, calls = dicom_results.make_sr, []

    def end_after_some(*words):
        if len(calls) == n_before:
            raise Killed
        calls.append(1)
        return make_sr(*words)

    monkeypatch.setattr(dicom_results, "make_sr", end_after_some)
    with pytest.raises(Killed):
        write(images, tmp_path / "out.csv", dicom_sr=tmp_path / "sr")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("sr/*.dcm")}
    assert len(before) == n_before and (tmp_path / "sr").exists() == bool(n_before)
    monkeypatch.setattr(dicom_results, "make_sr", make_sr)
    assert write(images, tmp_path / "out.csv", dicom_sr=tmp_path / "sr") == {"SR": N_IMAGES - 1}
    assert set(read_results(tmp_path / "sr")) == set(range(N_IMAGES)) - {BROKEN}
    assert all((tmp_path / "sr" / name).read_bytes() == content for name, content in before.items())


KILLED_SCRIPT = """
import os, signal, sys
from pathlib import Path
from test_dicom_results import GrayScorer, predict_module, write
predict_module.BLOCK_IMAGES = GrayScorer.batch_size = 2
from highdicom.sr import ComprehensiveSR
save_as = ComprehensiveSR.save_as
def kill_in_the_third(self, path, *words, **options):
    save_as(self, path, *words, **options)
    if len(list(Path(path).parent.glob("*.dcm"))) == 2:
        os.truncate(path, 5000)
        os.kill(os.getpid(), signal.SIGKILL)
ComprehensiveSR.save_as = kill_in_the_third
write(Path(sys.argv[1]), Path("out.csv"), dicom_sr=Path("sr"))
"""


@pytest.mark.slow
def test_a_killed_process_leaves_no_half_file(images, tmp_path):
    words = [sys.executable, "-c", KILLED_SCRIPT, str(images)]
    assert subprocess.run(words, cwd=tmp_path, env=make_environment(), check=False).returncode == -9
    folder = tmp_path / "sr"
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 5, "two reports, the unfinished one under a temporary name, the state and the lock"
    assert {len(path.read_bytes()) > 5000 for path in folder.glob("*.dcm")} == {True}
    assert write(images, tmp_path / "out.csv", dicom_sr=folder) == {"SR": N_IMAGES - 1}
    assert len(read_results(folder)) == N_IMAGES - 1


def interrupt(images, tmp_path, monkeypatch, n_calls=2, **folders):
    """Start a prediction that ends after some blocks."""
    with monkeypatch.context() as patch:
        score, calls = GrayScorer.score, []

        def end(self, batch):
            calls.append(1)
            if len(calls) > n_calls:
                raise Killed
            return score(self, batch)

        patch.setattr(GrayScorer, "score", end)
        with pytest.raises(Killed):
            write(images, tmp_path / "out.csv", **folders)


@pytest.mark.usefixtures("plain_reports")
def test_rows_without_reports_are_not_continued_with_reports(images, tmp_path, monkeypatch):
    interrupt(images, tmp_path, monkeypatch, dicom_sr=tmp_path / "sr")
    shutil.move(tmp_path / "sr", tmp_path / "moved")
    with pytest.raises(OutputError, match="4 rows of an interrupted prediction with other folders of DICOM results"):
        write(images, tmp_path / "out.csv", dicom_sr=tmp_path / "sr")
    assert write(images, tmp_path / "out.csv", dicom_sr=tmp_path / "moved") == {"SR": N_IMAGES - 1}


@pytest.mark.usefixtures("plain_reports")
def test_the_reports_of_another_prediction_are_not_continued(images, tmp_path, monkeypatch):
    interrupt(images, tmp_path, monkeypatch, dicom_sr=tmp_path / "sr")
    files = {path.name: path.read_bytes() for path in (tmp_path / "sr").iterdir()}
    assert str(tmp_path).encode() not in files[STATE_FILE]
    with pytest.raises(OutputError, match="interrupted prediction with 5 images instead of 1") as error:
        write(images / "00.dcm", tmp_path / "other.csv", dicom_sr=tmp_path / "sr")
    assert error.value.code == "E724"
    for words in ({"csv": tmp_path / "other.csv"}, {"csv": tmp_path / "out.csv", "dicom_sc": tmp_path / "sc"}):
        with pytest.raises(OutputError, match="with another CSV or other folders of DICOM results") as error:
            write(images, **words, dicom_sr=tmp_path / "sr")
        assert error.value.code == "E724" and not (tmp_path / "sc").exists()
    with pytest.raises(OutputError, match="with another kind of results"):
        write(images, tmp_path / "other.csv", dicom_sc=tmp_path / "sr")
    (tmp_path / "sr" / STATE_FILE).write_text("{")
    with pytest.raises(OutputError, match="the state of an interrupted prediction is damaged"):
        write(images, tmp_path / "out.csv", dicom_sr=tmp_path / "sr")
    left = {path.name: path.read_bytes() for path in (tmp_path / "sr").glob("*.dcm")}
    assert left == {name: content for name, content in files.items() if name.endswith(".dcm")}


def test_a_folder_with_other_files_is_refused_and_stays(images, tmp_path):
    (tmp_path / "sr").mkdir()
    assert DicomFolders(dicom_sr=tmp_path / "sr").validate() is None
    (tmp_path / "sr" / "a.txt").write_text("x")
    for path, problem in ((tmp_path / "sr", "not empty"), (tmp_path / "sr" / "a.txt", "a file, expected")):
        with pytest.raises(OutputError, match=problem) as error:
            write(images, tmp_path / "out.csv", dicom_sr=path)
        assert error.value.code == "E723"
    with pytest.raises(OutputError, match="does not exist"):
        DicomFolders(dicom_sr=tmp_path / "no" / "sr").validate()
    with pytest.raises(RecipeError, match="the same folder"):
        DicomFolders(dicom_sr=tmp_path / "a", dicom_sc=tmp_path / "b" / ".." / "a").validate()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "sr"]


def test_a_second_process_and_a_full_disk_are_errors_that_leave_no_folder(images, tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_results, "SR_BYTES", 10**15)
    with pytest.raises(StorageError, match="the DICOM results needs .* MB"):
        write(images, tmp_path / "out.csv", dicom_sr=tmp_path / "sr")
    assert not list(tmp_path.iterdir())
    (tmp_path / "sr").mkdir()
    with directory_lock(tmp_path / "sr"), pytest.raises(BusyError):
        write(images, tmp_path / "out.csv", dicom_sr=tmp_path / "sr")


def test_images_without_a_study_are_refused_with_their_number(images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    reject_other_images(make_image_table([folder]), Progress())
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"a\.png: 2 of 7 images can have no DICOM result; .* a PNG file") as error:
        reject_other_images(make_image_table([folder]), Progress())
    assert error.value.code == "E721" and "`dicom_sr`" in error.value.fix
    save_dicom(folder / "03.dcm", make_radiograph(StudyInstanceUID=None))
    with pytest.raises(DataError, match="3 of 7 images .* no StudyInstanceUID") as error:
        reject_other_images(make_image_table([folder]), Progress(), show_names=False)
    assert error.value.code == "E722" and "03.dcm" not in str(error.value)


@pytest.mark.usefixtures("plain_reports")
def test_copies_of_one_image_have_different_results_and_a_warning(tmp_path, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.dcm", "b.dcm"):
        save_dicom(folder / name, make_radiograph(3, PatientID="1" * 80, PatientName="x" * 90))
    reject_other_images(make_image_table([folder]), Progress())
    lost, copies = [record.getMessage() for record in caplog.records if record.name == "fastcxr"]
    assert "in the results: PatientID of 2 images, PatientName of 2 images; with an empty PatientID, a PACS may" in lost
    assert copies.startswith("2 files with the SOPInstanceUID of another one, the first ones a.dcm and b.dcm: several")
    assert "111" not in caplog.text and "xxx" not in caplog.text
    assert write(folder, tmp_path / "out.csv", dicom_sr=tmp_path / "sr") == {"SR": 2}
    reports = [dcmread(path) for path in (tmp_path / "sr").iterdir()]
    assert len({report.SOPInstanceUID for report in reports}) == 2
    assert len({report.SeriesInstanceUID for report in reports}) == 1


def test_python_writes_the_results_of_an_export(images, tmp_path):
    export = write_mean_export(tmp_path / "export")
    folders = {"dicom_sr": str(tmp_path / "sr"), "dicom_sc": tmp_path / "sc"}
    with pytest.raises(RecipeError, match="no folder for DICOM results"):
        write_dicom_results(export, images)
    summary = write_dicom_results(export, [images / "02.dcm", images / "03.dcm"], **folders, progress=Progress())
    assert (summary.counts.n_unreadable, len(summary.unreadable)) == (1, 1)
    assert set(read_results(tmp_path / "sr")) == set(read_results(tmp_path / "sc")) == {3}
    report, capture = read_results(tmp_path / "sr")[3], read_results(tmp_path / "sc")[3]
    assert report.ManufacturerModelName == "fastcxr resnet50" and "occlusion" in capture.DerivationDescription
    assert report.SeriesInstanceUID != capture.SeriesInstanceUID
    assert report.DeviceSerialNumber == capture.DeviceSerialNumber and len(report.DeviceSerialNumber) == 64
    content = next((tmp_path / "sr").iterdir()).read_bytes()
    assert b"sha256 of export.json: " in content and b"Critical notice on the model: Image-level split" in content


@pytest.fixture(scope="module")
def network():
    """A scorer with random weights, whose maps pass the sanity check."""
    return TorchScorer(make_random_classifier())


def test_the_maps_of_a_run_are_those_of_grad_cam_for_the_most_probable_class(images, tmp_path, network, monkeypatch):
    monkeypatch.setattr(explain_module, "run_sanity_check", lambda *words: None)
    monkeypatch.setattr(explain_module.Explainer, "failure_reason", "")
    counts = write(images, tmp_path / "out.csv", network, dicom_sc=tmp_path / "sc")
    assert counts == {"SC": N_IMAGES - 1}
    predictions = read_predictions(tmp_path / "out.csv")
    top = np.array(predictions.labels)[np.nan_to_num(predictions.probability).argmax(axis=1)]
    for number, capture in read_results(tmp_path / "sc").items():
        assert f"Saliency map (grad_cam) of fastcxr for {top[number]};" in capture.DerivationDescription


def test_maps_that_fail_the_sanity_check_are_not_written(images, tmp_path, network, monkeypatch):
    monkeypatch.setattr("fastcxr.inference.sanity_check.MAX_RANK_CORRELATION", -2)
    with pytest.raises(ModelError, match="no saliency map can be shown: the map hardly changes") as error:
        write(images, tmp_path / "out.csv", network, dicom_sc=tmp_path / "sc")
    assert error.value.code == "E725" and not list(tmp_path.iterdir())


def test_an_image_that_is_unreadable_has_one_row_in_the_maps(images):
    method, make_maps = make_map_source(GrayScorer(), make_image_table([images]))
    table = make_image_table([images]).iloc[BROKEN - 1 : BROKEN + 2].reset_index(drop=True)
    maps = list(make_maps(table, predict_module.predict(GrayScorer(), table, splits=None)))
    assert method == "occlusion" and [bool(one.error) for one in maps] == [False, True, False]


def test_a_missing_package_is_named_before_the_model_is_loaded(images, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.io.packages.find_missing", list)
    with pytest.raises(PackageError, match="a DICOM result needs highdicom, which is not installed"):
        write_dicom_results(tmp_path / "no run", images, dicom_sr=tmp_path / "sr")
