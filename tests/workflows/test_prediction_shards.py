"""Shards of a prediction are joined to the bytes of a single run, and other shards are rejected in one line."""

import json
import logging
import pickle
import shutil

import pytest
from gray_images import write_gray_images
from served_models import GrayScorer

from fastcxr.cli.option_names import name_options
from fastcxr.data.image_table import make_image_table
from fastcxr.errors import FastcxrError, InputMissingError, OutputError, RecipeError
from fastcxr.executors.run_tasks import InThisProcess
from fastcxr.export.exported_model import BATCH_SIZE
from fastcxr.inference import predict as predict_module
from fastcxr.models.fitting_batches import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from fastcxr.progress.base import Progress
from fastcxr.workflows import prediction_shards
from fastcxr.workflows.prediction import describe_prediction, write_prediction_csv
from fastcxr.workflows.prediction_shards import (
    ALIGNED_IMAGES,
    find_shard_rows,
    is_sharded,
    make_shard_tasks,
    merge_shards,
    parse_shard,
    predict_in_shards,
    write_shard,
)

BLOCK = 16


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 75 gray images of one level each, of which one is broken."""
    folder = tmp_path_factory.mktemp("images")
    write_gray_images(folder, 75)
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(predict_module, "BLOCK_IMAGES", 2 * BLOCK)
    monkeypatch.setattr(prediction_shards, "ALIGNED_IMAGES", BLOCK)


def write(images, csv, *shards, scorer=None, command="fastcxr predict run images --csv out.csv --shard SHARD"):
    """Write shards, or without them the whole file; return the summary of the last one."""
    scorer, table = scorer or GrayScorer(), make_image_table([images])
    description = describe_prediction(images, scorer, table, hash_names=False)
    if not shards:
        return write_prediction_csv(scorer, table, csv, description, Progress())
    return [write_shard(scorer, table, csv, description, shard, Progress(), command=command) for shard in shards][-1]


@pytest.mark.parametrize("n_shards", [1, 3, 8])
def test_joined_shards_have_the_bytes_of_a_single_run(images, tmp_path, n_shards):
    write(images, tmp_path / "whole.csv")
    write(images, tmp_path / "out.csv", *[(number, n_shards) for number in range(n_shards, 0, -1)])
    assert is_sharded(tmp_path / "out.csv.shards") and not is_sharded(tmp_path) and not is_sharded(tmp_path / "no")
    assert merge_shards(tmp_path / "out.csv.shards") == tmp_path / "out.csv"
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_header_with_a_line_feed_is_joined_once(images, tmp_path, monkeypatch):
    monkeypatch.setattr(GrayScorer, "labels", ("dark", 'bri\n"ght'))
    write(images, tmp_path / "whole.csv")
    write(images, tmp_path / "out.csv", (1, 2), (2, 2))
    assert merge_shards(tmp_path / "out.csv.shards").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(("n_images", "n_shards"), [(0, 3), (1, 3), (16, 2), (17, 2), (75, 3), (1000, 7)])
def test_every_image_is_in_one_shard_that_starts_with_a_batch(n_images, n_shards):
    ranges = [find_shard_rows(n_images, (number, n_shards)) for number in range(1, n_shards + 1)]
    assert [row for rows in ranges for row in rows] == list(range(n_images))
    assert all(rows.start % BLOCK == 0 for rows in ranges if rows)


def test_shards_and_blocks_have_whole_batches_on_every_device():
    for batch_size in (CPU_BATCH_SIZE, GPU_BATCH_SIZE, BATCH_SIZE):
        assert ALIGNED_IMAGES % batch_size == 0
    assert 1024 % ALIGNED_IMAGES == 0


@pytest.mark.parametrize("text", ["3", "0/3", "4/3", "1/0", "-1/3", "a/b", "1/3 ", ""])
def test_another_text_is_no_shard(text):
    with pytest.raises(RecipeError, match="expected NUMBER/TOTAL"):
        parse_shard(text)


def test_a_finished_shard_is_not_predicted_again(images, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="fastcxr")
    first = write(images, tmp_path / "out.csv", (2, 3))
    scorer = GrayScorer()
    assert write(images, tmp_path / "out.csv", (2, 3), scorer=scorer) == first
    assert scorer.n_calls == 0 and first.counts.n_unreadable == 1
    assert caplog.messages == ["shard 2 of 3 is finished already"]
    write(images, tmp_path / "out.csv.shards" / "many.csv", (1, 8))
    assert caplog.messages[-1] == f"shard 1 of 8 has no images: shards start at multiples of {BLOCK} images"


def test_no_shard_and_no_merge_replaces_a_file_of_other_images(images, tmp_path):
    write(images, tmp_path / "out.csv", (1, 2), (2, 2))
    shards, csv = tmp_path / "out.csv.shards", tmp_path / "out.csv"
    joined = merge_shards(shards).read_bytes()
    assert merge_shards(shards).read_bytes() == joined
    assert write(images, csv, (1, 2)).counts.n_unreadable == 1  # finished: nothing is written
    csv.write_text("of another person")
    with pytest.raises(OutputError, match="this file exists already. Choose another name, or remove it"):
        merge_shards(shards)
    (shards / "shard-2-of-2.json").unlink()
    with pytest.raises(OutputError, match="this file exists already"):
        write(images, csv, (2, 2))
    with pytest.raises(OutputError, match="this file exists already"):
        predict_in_shards(images, (str(images),), csv, InThisProcess(), Progress())
    assert csv.read_text() == "of another person"
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", "out.csv.shards"}


def test_missing_and_unfinished_shards_are_named_with_the_command(images, tmp_path):
    write(images, tmp_path / "out.csv", (1, 4), command=f"fastcxr predict run {images} --csv out.csv --shard=SHARD -q")
    (tmp_path / "out.csv.shards" / "shard-3-of-4.csv.part").mkdir()
    command = "fastcxr predict run images. --csv out.csv --shard=2/4 -q"
    text = rf"FCX-E624 .*out\.csv\.shards: of 4 shards: 2 and 4 missing, 3 not finished\. Run: {command}"
    with pytest.raises(InputMissingError, match=text):
        merge_shards(tmp_path / "out.csv.shards")
    assert str(images) not in (tmp_path / "out.csv.shards" / "shard-1-of-4.json").read_text()


def test_shards_of_another_model_or_number_are_rejected_when_they_start(images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    write(folder, tmp_path / "out.csv", (1, 3))
    with pytest.raises(OutputError, match="FCX-E623 .*: the folder has shards of 3, this command is a shard of 2"):
        write(folder, tmp_path / "out.csv", (1, 2))
    (folder / "model.json").write_text("{}")
    with pytest.raises(OutputError, match="FCX-E623 .*shard 1 of 3 in this folder has another model"):
        write(folder, tmp_path / "out.csv", (2, 3))


def test_shards_from_two_computers_with_other_models_are_not_joined(images, tmp_path):
    """The folders of two computers were copied together, so that no shard saw the others."""
    folder = shutil.copytree(images, tmp_path / "images")
    write(folder, tmp_path / "out.csv", (1, 2))
    (folder / "model.json").write_text("{}")
    (tmp_path / "other").mkdir()
    write(folder, tmp_path / "other" / "out.csv", (2, 2))
    shutil.copytree(tmp_path / "other" / "out.csv.shards", tmp_path / "out.csv.shards", dirs_exist_ok=True)
    with pytest.raises(OutputError, match="FCX-E623 .*shard 2 has another model than shard 1"):
        merge_shards(tmp_path / "out.csv.shards")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("damage", ["csv", "json", "name"])
def test_a_damaged_shard_is_not_joined(images, tmp_path, damage):
    write(images, tmp_path / "out.csv", (1, 2), (2, 2))
    description = tmp_path / "out.csv.shards" / "shard-2-of-2.json"
    if damage == "csv":
        description.with_suffix(".csv").open("a").write("x")
    elif damage == "json":
        description.write_text("{}")
    else:
        description.write_text(json.dumps(json.loads(description.read_text()) | {"file": "../out.csv"}))
    with pytest.raises(OutputError, match="FCX-E622 .*predict the shard again"):
        merge_shards(tmp_path / "out.csv.shards")


def test_a_folder_without_shards_or_with_two_numbers_of_shards_is_an_error(images, tmp_path):
    with pytest.raises(InputMissingError, match="FCX-E624 .*no shards of a prediction"):
        merge_shards(tmp_path)
    write(images, tmp_path / "out.csv", (1, 1))
    (tmp_path / "out.csv.shards" / "shard-3-of-4.csv.part").mkdir()
    with pytest.raises(OutputError, match="FCX-E623 .*shards of 1 and 4 in one folder"):
        merge_shards(tmp_path / "out.csv.shards")


def test_the_tasks_of_all_shards_can_be_sent_to_another_process(images, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_shards, "load_scorer", lambda folder, **options: GrayScorer())
    write(images, tmp_path / "whole.csv")
    tasks = make_shard_tasks(images, (str(images),), tmp_path / "out.csv", 3, device="cpu")
    assert list(tasks) == ["shard 1 of 3", "shard 2 of 3", "shard 3 of 3"]
    for task in pickle.loads(pickle.dumps(list(tasks.values()))):  # noqa: S301  made here
        task.function(*task.args, **task.kwargs)
    assert merge_shards(tmp_path / "out.csv.shards").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_workers_predict_shards_and_only_the_joined_file_is_left(images, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction_shards, "load_scorer", lambda folder, **options: GrayScorer())
    expected = write(images, tmp_path / "whole.csv")
    write(images, tmp_path / "out.csv", (2, 3))  # of an interrupted command with three workers
    found = predict_in_shards(images, (str(images),), tmp_path / "out.csv", InThisProcess(), Progress())
    assert found == expected
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "whole.csv"]


def test_the_fix_of_each_error_names_options_of_the_command():
    with pytest.raises(FastcxrError) as caught:
        parse_shard("x")
    assert "--shard 3/8" in name_options(str(caught.value))
