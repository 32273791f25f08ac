"""The command predict with shards, and after an interruption."""

import json
from pathlib import Path

import pytest
from gray_images import write_gray_images
from served_models import GrayScorer

from fastcxr.errors import InputMissingError
from fastcxr.workflows import prediction_shards
from fastcxr.workflows.prediction_shards import merge_shards


@pytest.fixture
def images(tmp_path):
    """A folder of 20 gray images, of which one is broken."""
    (tmp_path / "images").mkdir()
    write_gray_images(tmp_path / "images", 20, broken=5)
    return "images"


@pytest.fixture(autouse=True)
def gray_model(monkeypatch):
    monkeypatch.setattr("fastcxr.workflows.load_scorer.load_scorer", lambda folder, **options: GrayScorer())
    monkeypatch.setattr(prediction_shards, "ALIGNED_IMAGES", 8)


def test_the_shards_of_the_command_are_joined_to_the_file_of_a_single_run(call, images, tmp_path):
    done = call("predict", "run", images, "--csv", "out.csv", "--shard", "1/2", where=tmp_path)
    assert done.returncode == 2 and "FCX-E102" in done.stderr
    assert "next: when all 2 shards are finished: fastcxr merge out.csv.shards" in done.stderr
    done = call("predict", "run", images, "--csv", "out.csv", "--shard", "2/2", "--json", where=tmp_path)
    document = json.loads(done.stdout)
    assert (document["shard"], document["n_classified"], document["n_ood"]) == ("2/2", 11, 1)
    assert document["file"] == str(Path("out.csv.shards", "shard-2-of-2.csv"))
    (tmp_path / "out.csv.shards" / "shard-1-of-2.json").rename(tmp_path / "shard-1-of-2.json")
    with pytest.raises(InputMissingError, match=r"Run: fastcxr predict run images --csv out\.csv --shard 1/2 --json"):
        merge_shards(tmp_path / "out.csv.shards")
    (tmp_path / "shard-1-of-2.json").rename(tmp_path / "out.csv.shards" / "shard-1-of-2.json")
    assert call("predict", "run", images, "--csv", "whole.csv", where=tmp_path).returncode == 2
    merged = merge_shards(tmp_path / "out.csv.shards")
    assert merged.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--shard", "1/2"], "--shard needs the file that the shards are joined to. Add --csv FILE"),
        (["--csv", "out.csv", "--shard", "3/2"], "Pass for example --shard 3/8"),
        (["--jobs", "2"], "--jobs is for the pieces of a run, and it needs one file to write. Add --csv FILE"),
    ],
)
def test_an_invalid_shard_is_an_error_in_one_line(call, images, tmp_path, words, line):
    done = call("predict", "run", images, *words, where=tmp_path)
    assert done.returncode == 64 and line in done.stderr
    assert not list(tmp_path.glob("out*"))


def test_a_finished_file_is_kept_and_its_name_is_printed(call, images, tmp_path):
    done = call("predict", "run", images, "--csv", "out.csv", where=tmp_path)
    assert (done.returncode, done.stdout) == (2, "out.csv\n")
    content = (tmp_path / "out.csv").read_bytes()
    for words in ([], ["--jobs", "2"]):
        done = call("predict", "run", f"{images}/0003.png", "--csv", "out.csv", *words, where=tmp_path)
        assert done.returncode == 73 and "this file exists already. Choose another name, or remove it" in done.stderr
    assert (tmp_path / "out.csv").read_bytes() == content and not list(tmp_path.glob("out.csv.*"))


def test_a_file_created_during_the_prediction_is_kept_with_the_rows(call, images, tmp_path, monkeypatch):
    score = GrayScorer.score
    monkeypatch.setattr(GrayScorer, "score", lambda *words: (tmp_path / "out.csv").write_text("x") and score(*words))
    done = call("predict", "run", images, "--csv", "out.csv", where=tmp_path)
    assert done.returncode == 73 and (tmp_path / "out.csv").read_text() == "x"
    (tmp_path / "out.csv").unlink()
    done = call("predict", "run", images, "--csv", "out.csv", where=tmp_path)
    assert done.returncode == 2 and "continuing after 20 of 20 images" in done.stderr
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 21


def test_a_command_after_ctrl_c_continues(call, images, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.inference.predict.BLOCK_IMAGES", 8)
    assert call("predict", "run", images, "--csv", "whole.csv", where=tmp_path).returncode == 2
    score, calls = GrayScorer.score, []

    def interrupt(self, images):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, images)

    monkeypatch.setattr(GrayScorer, "score", interrupt)
    done = call("predict", "run", images, "--csv", "out.csv", where=tmp_path)
    assert done.returncode == 130
    assert "interrupted: 8 of 20 images predicted. Repeat the command to continue" in done.stderr
    done = call("predict", "run", images, "--csv", "out.csv", where=tmp_path)
    assert done.returncode == 2 and "continuing after 8 of 20 images" in done.stderr
    assert len(calls) == 4
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
