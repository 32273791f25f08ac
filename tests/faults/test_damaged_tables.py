"""Tests of damaged tables and run folders: each yields a result or a one-line error, never a traceback."""

import os
import random
import shutil

import pytest
from mutated_files import mutate
from PIL import Image
from synthetic_run import build_run
from toy_images import draw_toy

from fastcxr.config.recipe import Recipe
from fastcxr.data.manifest import read_manifest
from fastcxr.errors import FastcxrError
from fastcxr.report.run_page import write_run_report
from fastcxr.report.run_reader import read_run_record

pytestmark = pytest.mark.usefixtures("without_figures")

UNUSUAL_CELLS = (
    b"\x00", b'"', b"\r", b"\xff\xfe", b";", b"\t", b"=1+1", b"../../x", b"\xe2\x80\xae", b"nan", b",,,,", b"9" * 5000,
)  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Write images and a CSV in one folder; return the path and the content of the CSV."""
    folder = tmp_path_factory.mktemp("table")
    lines = ["path,label,patient,split,note"]
    for number in range(12):
        Image.fromarray(draw_toy("haze", number)).save(folder / f"{number}.png")
        split = ("train", "valid", "test")[number // 2 % 3]
        lines.append(f"{number}.png,{'ab'[number % 2]},p{number},{split},größe {number}")
    return folder / "cohort.csv", ("\ufeff" + "\r\n".join(lines)).encode()


def damage(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes with some changed, or with an unusual cell inserted."""
    if rng.random() < 0.5:
        return mutate(data, data[::-1], rng)
    position = rng.randrange(len(data))
    return data[:position] + rng.choice(UNUSUAL_CELLS) + data[position:]


def test_100_damaged_tables_are_read_or_rejected_in_one_line(table):
    path, content = table
    rng, errors = random.Random(3), []
    for _ in range(100):
        path.write_bytes(damage(content, rng))
        try:
            read_manifest(path)
        except FastcxrError as error:
            errors.append(error)
    assert 20 < len(errors) < 180
    assert not [error for error in errors if "\n" in str(error) or not error.fix]


def test_damaged_run_files_yield_a_one_line_error(tmp_path):
    good = build_run(tmp_path / "good", thumbnails=False)
    (good / "recipe.json").write_text(Recipe().to_json())
    rng, errors = random.Random(4), []
    names = sorted(path.name for path in good.iterdir() if path.suffix in (".csv", ".json"))
    for number in range(60):
        folder = shutil.copytree(good, tmp_path / f"run{number}")
        file = folder / names[number % len(names)]
        file.write_bytes(damage(file.read_bytes(), rng))
        try:
            read_run_record(folder)
            Recipe.from_json(folder / "recipe.json")
        except FastcxrError as error:
            errors.append(error)
        shutil.rmtree(folder)
    assert len(errors) > 5
    assert not [error for error in errors if "\n" in str(error) or not error.fix]


@pytest.mark.parametrize("name", ["run.json", "recipe.json", "audit.json", "model.json"])
@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": NaN}', b"\xff"])
def test_invalid_json_is_rejected_in_one_line(tmp_path, name, content):
    folder = build_run(tmp_path / "run", thumbnails=False)
    (folder / name).write_bytes(content)
    with pytest.raises(FastcxrError, match=name) as caught:
        write_run_report(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "column"), [("predictions.csv", 8), ("learning_rate.csv", 1)])
def test_invalid_utf8_in_a_numeric_column_is_rejected(tmp_path, name, column):
    folder = build_run(tmp_path / "run", thumbnails=False)
    header, first, *rest = (folder / name).read_bytes().split(b"\n")
    cells = first.split(b",")
    cells[column] = b"\xff\xfe"
    (folder / name).write_bytes(b"\n".join([header, b",".join(cells), *rest]))
    with pytest.raises(FastcxrError, match=name) as caught:
        read_run_record(folder)
    assert "\n" not in str(caught.value)


def test_a_pipe_with_the_name_of_a_file_is_rejected_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "recipe.json")
    with pytest.raises(FastcxrError, match="Name a run folder"):
        Recipe.from_json(tmp_path / "recipe.json")
    os.mkfifo(tmp_path / "cohort.csv")
    with pytest.raises(FastcxrError):
        read_manifest(tmp_path / "cohort.csv")
