"""A CSV of predictions is written in blocks, and an interrupted prediction is continued with the same bytes."""

import errno
import os
import shutil
import weakref
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from gray_images import write_gray_images
from PIL import Image
from served_models import GrayScorer

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.image_table import make_image_table
from fastcxr.errors import BusyError, OutputError, StorageError
from fastcxr.inference import predict as predict_module
from fastcxr.inference.predict import predict, predict_blocks
from fastcxr.io.lock import directory_lock
from fastcxr.metrics.decisions import apply_thresholds
from fastcxr.metrics.predictions import read_predictions, write_predictions
from fastcxr.progress.base import Progress
from fastcxr.workflows import prediction
from fastcxr.workflows.prediction import PredictionOptions, describe_prediction, write_prediction_csv

N_IMAGES, BLOCK = 50, 16


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of gray images of one level each; one is broken, one is in colour."""
    folder = tmp_path_factory.mktemp("images")
    write_gray_images(folder, N_IMAGES)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "40.png")
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(predict_module, "BLOCK_IMAGES", BLOCK)


class BrokenOff(Exception):
    """The process ended."""


class EndingScorer(GrayScorer):
    """Ends with an error after `n_batches` batches."""

    def __init__(self, n_batches: int, error: type[BaseException] = BrokenOff):
        super().__init__()
        self.n_batches, self.error = n_batches, error

    def score(self, images):
        if self.n_calls == self.n_batches:
            raise self.error
        return super().score(images)


def write(scorer, images, csv, **options):
    """Write the predictions of a folder of images."""
    table = make_image_table([images])
    hash_names = options.get("hash_names", False)
    description = describe_prediction(images, scorer, table, hash_names=hash_names)
    return write_prediction_csv(scorer, table, csv, description, Progress(), PredictionOptions(**options))


def write_at_once(scorer, images, csv, **options):
    """Write the predictions of all images without blocks."""
    predictions = predict(scorer, make_image_table([images]), splits=None, **options)
    write_predictions(apply_thresholds(predictions, scorer.thresholds), csv)
    return csv.read_bytes()


@pytest.mark.parametrize("options", [{}, {"hash_names": True}])
@pytest.mark.parametrize("task", [GrayScorer.task, MULTI_LABEL])
def test_a_file_written_in_blocks_has_the_bytes_of_predict(images, tmp_path, monkeypatch, task, options):
    monkeypatch.setattr(GrayScorer, "task", task)
    monkeypatch.setattr(predict_module, "BLOCK_IMAGES", 1000)
    expected = write_at_once(GrayScorer(), images, tmp_path / "all.csv", **options)
    monkeypatch.setattr(predict_module, "BLOCK_IMAGES", BLOCK)
    summary = write(GrayScorer(), images, tmp_path / "blocks.csv", **options)
    assert (tmp_path / "blocks.csv").read_bytes() == expected
    assert (summary.counts.n_unreadable, summary.counts.n_ood) == (1, 2)
    assert "FCX-E102" in summary.unreadable[0][1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.csv", "blocks.csv"]


def test_a_name_with_a_carriage_return_quotes_the_texts_of_all_blocks(images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "49.png").rename(folder / "49\r.png")
    write(GrayScorer(), folder, tmp_path / "blocks.csv")
    assert (tmp_path / "blocks.csv").read_bytes() == write_at_once(GrayScorer(), folder, tmp_path / "all.csv")
    assert read_predictions(tmp_path / "blocks.csv").table["path"].iloc[-1] == "49\r.png"


def test_predictions_of_python_do_not_depend_on_the_blocks(toy_manifest, monkeypatch):
    table = toy_manifest.assign(label=None, note=[None] * 20 + ["late"] * (len(toy_manifest) - 20))
    found = predict(GrayScorer(), table, splits=None).table
    monkeypatch.setattr(predict_module, "BLOCK_IMAGES", 1000)
    pd.testing.assert_frame_equal(found, predict(GrayScorer(), table, splits=None).table)


def test_warnings_of_all_blocks_are_counted_and_logged_once(images, tmp_path, caplog):
    folder = shutil.copytree(images, tmp_path / "images")
    shutil.copy(folder / "40.png", folder / "03.png")
    predict(GrayScorer(), folder)
    lines = [line for line in caplog.messages if "FCX-W203" in line]
    assert len(lines) == 1 and "2 images" in lines[0] and "(first: '03.png')" in lines[0]


def test_no_earlier_block_is_kept(images):
    earlier = []
    for block in predict_blocks(GrayScorer(), make_image_table([images]), Progress()):
        assert not [ref for ref in earlier[:-1] if ref() is not None]
        earlier.append(weakref.ref(block))
    assert len(earlier) == 4


@pytest.mark.parametrize("n_batches", [1, 2, 5])
def test_an_interrupted_prediction_is_continued_after_its_last_complete_block(images, tmp_path, n_batches):
    summary = write(GrayScorer(), images, tmp_path / "whole.csv")
    with pytest.raises(BrokenOff):
        write(EndingScorer(n_batches), images, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    n_blocks = n_batches // 2
    if n_blocks:
        with (tmp_path / "out.csv.part" / "rows.csv").open("ab") as file:
            file.write(b"a row that was not counted")
    scorer = GrayScorer()
    continued = write(scorer, images, tmp_path / "out.csv")
    assert scorer.n_calls == 7 - 2 * n_blocks
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert asdict(continued) == asdict(summary)
    assert not (tmp_path / "out.csv.part").exists()


def test_ctrl_c_states_how_many_images_are_predicted(images, tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        write(EndingScorer(2, KeyboardInterrupt), images, tmp_path / "out.csv")
    assert caught.value.__notes__ == ["16 of 50 images predicted"]


def change_model(images, monkeypatch):
    (images / "model.json").write_text("{}")


def change_device(images, monkeypatch):
    monkeypatch.setattr(GrayScorer, "dtype_and_device", "bfloat16 on cuda")


def add_image(images, monkeypatch):
    shutil.copy(images / "01.png", images / "new.png")


def change_image(images, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(images / "49.png")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (change_model, "another model"),
        (change_device, r"another precision and device \(float64 on cpu, now bfloat16 on cuda\)"),
        (add_image, "50 images instead of 51"),
        (change_image, "other images"),
    ],
)
def test_an_interrupted_prediction_of_something_else_is_not_continued(images, tmp_path, monkeypatch, change, text):
    folder = shutil.copytree(images, tmp_path / "images")
    with pytest.raises(BrokenOff):
        write(EndingScorer(4), folder, tmp_path / "out.csv")
    change(folder, monkeypatch)
    with pytest.raises(OutputError, match=rf"FCX-E621 .*out.csv.part: holds 32 rows .* with {text}\. Repeat its"):
        write(GrayScorer(), folder, tmp_path / "out.csv")
    assert (tmp_path / "out.csv.part" / "rows.csv").exists()
    write(GrayScorer(), folder, tmp_path / "out.csv", restart=True)
    assert len(read_predictions(tmp_path / "out.csv").table) >= N_IMAGES


def test_damaged_rows_are_not_continued(images, tmp_path):
    with pytest.raises(BrokenOff):
        write(EndingScorer(4), images, tmp_path / "out.csv")
    os.truncate(tmp_path / "out.csv.part" / "rows.csv", 10)
    with pytest.raises(OutputError, match=r"FCX-E622 .*out\.csv\.part: .* damaged\. Remove this folder"):
        write(GrayScorer(), images, tmp_path / "out.csv")


def test_a_disk_that_is_too_small_is_an_error_before_the_first_image(images, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1_000))
    scorer = GrayScorer()
    with pytest.raises(StorageError, match=r"the file needs 0.0 MB, 0.0 MB are free. Free disk space and repeat"):
        write(scorer, images, tmp_path / "out.csv")
    assert scorer.n_calls == 0
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_finished_rows(images, tmp_path, monkeypatch):
    write(GrayScorer(), images, tmp_path / "whole.csv")
    whole, n_synced = os.fsync, []

    def fail_later(descriptor):
        n_synced.append(descriptor)
        if len(n_synced) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fail_later)
    with pytest.raises(StorageError, match=r"Free disk space and repeat the command: (16|32) finished rows are kept"):
        write(GrayScorer(), images, tmp_path / "out.csv")
    monkeypatch.setattr(os, "fsync", whole)
    scorer = GrayScorer()
    write(scorer, images, tmp_path / "out.csv")
    assert scorer.n_calls < 7
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_folder_in_the_place_of_the_file_is_an_error_before_the_first_image(images, tmp_path):
    scorer = GrayScorer()
    with pytest.raises(OutputError, match="cannot be written"):
        write(scorer, images, tmp_path)
    assert scorer.n_calls == 0


def test_two_processes_do_not_write_the_same_file(images, tmp_path):
    (tmp_path / "out.csv.part").mkdir()
    with directory_lock(tmp_path / "out.csv.part"), pytest.raises(BusyError):
        write(GrayScorer(), images, tmp_path / "out.csv")


def test_a_file_with_many_errors_lists_the_first_ones(images, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "MAX_LISTED_ERRORS", 2)
    folder = shutil.copytree(images, tmp_path / "images")
    for number in (5, 30, 45):
        (folder / f"{number:02d}.png").write_bytes(b"no image")
    summary = write(GrayScorer(), folder, tmp_path / "out.csv")
    assert summary.counts.n_unreadable == 4
    assert [path for path, _ in summary.unreadable] == ["05.png", "20.png"]
