"""The command predict with --dicom-sr and --dicom-sc."""

import json

import pytest
from dicom_studies import make_plain_report, make_radiograph, write_radiographs
from sample_images import save_dicom
from served_models import GrayScorer, make_png_bytes

pytestmark = pytest.mark.needs("highdicom")


@pytest.fixture
def images(tmp_path):
    """A folder of four radiographs, of which one is truncated."""
    write_radiographs(tmp_path / "images", 4, broken=1)
    return "images"


@pytest.fixture(autouse=True)
def gray_model(monkeypatch):
    monkeypatch.setattr("fastcxr.workflows.load_scorer.load_scorer", lambda folder, **options: GrayScorer())


def test_the_command_prints_the_numbers_of_files_and_keeps_its_rows(call, images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text("{")
    done = call("predict", "run", images, "--csv", "out.csv", "--dicom-sr", "sr", "--dicom-sc", "sc", where=tmp_path)
    assert done.returncode == 2 and done.stdout == "out.csv\n", done.stderr
    assert "3 structured reports in sr" in done.stderr and "3 secondary captures in sc" in done.stderr
    assert "3 images classified, 1 unreadable" in done.stderr
    assert done.stderr.count("the critical notices of the run run are unknown") == 1
    assert len(list((tmp_path / "sr").iterdir())) == len(list((tmp_path / "sc").iterdir())) == 3
    done = call("predict", "run", images, "--dicom-sr", "sr", where=tmp_path)
    assert done.returncode == 73 and "FCX-E723 sr: this folder is not empty" in done.stderr


def test_without_a_csv_the_rows_are_on_standard_output(call, images, tmp_path):
    plain = call("predict", "run", images, where=tmp_path)
    done = call("predict", "run", images, "--dicom-sr", "sr", "--hash-names", where=tmp_path)
    assert len(done.stdout.splitlines()) == len(plain.stdout.splitlines()) == 5
    assert b"ZZTESTID" in next((tmp_path / "sr").iterdir()).read_bytes(), "as the help of --hash-names states"
    done = call("predict", "run", images, "--dicom-sr", "again", "--json", where=tmp_path)
    document = json.loads(done.stdout)
    assert document["dicom_sr"] == {"folder": "again", "n_files": 3} and len(document["predictions"]) == 4


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--csv", "o.csv", "--shard", "1/2"], 64, "--dicom-sr cannot be combined with --shard, --jobs and --cluster"),
        (["--csv", "o.csv", "--jobs", "2"], 64, "--dicom-sr cannot be combined with --shard, --jobs and --cluster"),
        (["--dicom-sc", "images/sc"], 73, "FCX-E723 images/sc: in a folder of the images, where the next prediction"),
        (["--dicom-sc", "sr"], 64, "--dicom-sr and --dicom-sc are the same folder. Pass two folders"),
        (["a.png"], 65, "1 of 5 images can have no DICOM result; the first one: a PNG file has no study that a DICOM"),
        (
            ["no_study.dcm"],
            65,
            "FCX-E722 no_study.dcm: 1 of 5 images can have no DICOM result; the first one: the",
        ),
        (["a.png", "--hash-names"], 65, "fastcxr: FCX-E721: 1 of 5"),
    ],
)
def test_a_wrong_use_is_an_error_in_one_line_before_any_prediction(
    call, images, tmp_path, monkeypatch, words, code, line
):
    (tmp_path / "a.png").write_bytes(make_png_bytes())
    save_dicom(tmp_path / "no_study.dcm", make_radiograph(StudyInstanceUID=None))
    monkeypatch.setattr(GrayScorer, "score", lambda *words: pytest.fail("an image was predicted"))
    done = call("predict", "run", images, "--dicom-sr", "sr", *words, where=tmp_path)
    assert done.returncode == code and line in done.stderr
    assert not (tmp_path / "sr").exists() and not list(tmp_path.glob("o.csv*"))


def test_a_command_after_ctrl_c_continues(call, images, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.workflows.dicom_results.make_sr", make_plain_report)
    monkeypatch.setattr("fastcxr.inference.predict.BLOCK_IMAGES", 2)
    monkeypatch.setattr(GrayScorer, "batch_size", 2)
    score, calls = GrayScorer.score, []

    def interrupt(self, batch):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, batch)

    monkeypatch.setattr(GrayScorer, "score", interrupt)
    words = ["predict", "run", images, "--csv", "out.csv", "--dicom-sr", "sr"]
    done = call(*words, where=tmp_path)
    assert done.returncode == 130 and "interrupted: 2 of 4 images predicted, 1 DICOM result written" in done.stderr
    assert len(list((tmp_path / "sr").glob("*.dcm"))) == 1
    done = call(*words, where=tmp_path)
    assert done.returncode == 2 and "continuing after 2 of 4 images" in done.stderr
    assert "3 structured reports in sr" in done.stderr
    assert [path.suffix for path in (tmp_path / "sr").iterdir()] == [".dcm"] * 3
