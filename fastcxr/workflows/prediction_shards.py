"""Shards of a prediction, for several processes or computers, and the file that they are joined to.

A shard is a contiguous range of the images, so that the joined file is their concatenation, and resuming and decoding
need no index. It starts at a multiple of ALIGNED_IMAGES: all batches have the images that they have in a single run,
and so do the last digits of the probabilities.
"""

import filecmp
import logging
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from fastcxr.data.image_table import make_image_table
from fastcxr.errors import InputMissingError, OutputError, RecipeError
from fastcxr.executors.run_tasks import count_workers, run_tasks
from fastcxr.executors.shared_folder import SharedFolder
from fastcxr.executors.worker import Task
from fastcxr.inference.scores import Scorer
from fastcxr.io.files import (
    atomic_file,
    compute_sha256,
    convert_write_errors,
    read_json,
    reject_existing,
    require_free_space,
    write_json,
)
from fastcxr.io.formatting import join_names
from fastcxr.io.redact import redact_command
from fastcxr.progress.base import Progress
from fastcxr.training.interrupt import InterruptibleProgress, interrupt_when
from fastcxr.workflows.load_scorer import load_scorer
from fastcxr.workflows.prediction import (
    PART_SUFFIX,
    PredictionOptions,
    PredictionSummary,
    describe_prediction,
    find_difference,
    validate_new_csv,
    write_prediction_csv,
)

SHARDS_SUFFIX = ".shards"  # of the folder beside the file
SHARD_FORMAT = 1  # of the JSON file of a shard
ALIGNED_IMAGES = 256  # a multiple of the batch sizes on all devices
SHARD_PATTERN = re.compile(r"([1-9]\d{0,5})/([1-9]\d{0,5})")
SHARD_FILE_PATTERN = re.compile(r"shard-(\d+)-of-(\d+)\.(json|csv|csv\.part)")
SHARD_PLACEHOLDER = "SHARD"  # in the stored command
log = logging.getLogger("fastcxr")
Shard = tuple[int, int]  # number of the shard, from 1, and number of all shards


def parse_shard(text: str) -> Shard:
    """Return the number of a shard and the number of all shards of "3/8". Raises RecipeError for another text."""
    match = SHARD_PATTERN.fullmatch(text)
    if match is None or int(match[1]) > int(match[2]):
        problem = f"the shard is {text!r}, expected NUMBER/TOTAL from 1/TOTAL to TOTAL/TOTAL"
        raise RecipeError(problem, "Pass for example `shard='3/8'`")
    return int(match[1]), int(match[2])


def find_shard_rows(n_images: int, shard: Shard) -> range:
    """Return the rows of a shard; without a row if there are fewer than ALIGNED_IMAGES images per shard."""
    number, n_shards = shard
    n_units = -(-n_images // ALIGNED_IMAGES)
    edges = [min(n_units * k // n_shards * ALIGNED_IMAGES, n_images) for k in (number - 1, number)]
    return range(*edges)


def find_shards_folder(csv: Path) -> Path:
    """Return the folder of the shards of a CSV: FILE.shards."""
    return csv.with_name(csv.name + SHARDS_SUFFIX)


def find_shard_file(csv: Path, shard: Shard) -> Path:
    """Return the file of a shard of a CSV."""
    return find_shards_folder(csv) / _name_shard(shard, "csv")


def predict_shard(
    folder: str | Path,
    images: tuple[str, ...],
    csv: Path,
    shard: Shard,
    *,
    hash_names: bool = False,
    command: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> PredictionSummary:
    """Predict one shard of the images with a model; a function for another process, which loads the model itself.

    Args:
        folder: see load_scorer.
        images: files and folders; see make_image_table.
        csv: the file that the shards will be joined to.
        shard: number of the shard, from 1, and number of all shards.
        hash_names: see predict.
        command: see write_shard.
        progress: progress display; silent by default.
        **options: precision, device and engine; see load_scorer.
    """
    scorer = load_scorer(folder, **options)
    table = make_image_table(images, log_names=not hash_names)
    description = describe_prediction(folder, scorer, table, hash_names=hash_names)
    return write_shard(
        scorer, table, csv, description, shard, progress or Progress(), hash_names=hash_names, command=command
    )


def make_shard_tasks(
    folder: str | Path, images: tuple[str, ...], csv: Path, n_shards: int, **options: Any
) -> dict[str, Task]:
    """Return the tasks that predict all shards, by name; see predict_shard."""
    options = {"progress": InterruptibleProgress(), **options}
    shards = [(number, n_shards) for number in range(1, n_shards + 1)]
    return {
        f"shard {number} of {n_shards}": Task(predict_shard, (folder, images, csv, (number, n_shards)), options)
        for number, n_shards in shards
    }


def predict_in_shards(
    folder: str | Path,
    images: tuple[str, ...],
    csv: Path,
    executor: Executor | None,
    progress: Progress,
    **options: Any,
) -> PredictionSummary:
    """Predict one shard for each worker of an executor, and join them; the shards are removed.

    After an interruption, finished shards are not predicted again, and the others are continued.

    Args:
        folder: see load_scorer.
        images: files and folders; see make_image_table.
        csv: the file to write.
        executor: any Executor with one task per process; None: this process, with one shard.
        progress: shows a bar of finished shards.
        **options: see predict_shard.

    Raises:
        OutputError: the file exists, or cannot be written; or see write_shard.
    """
    validate_new_csv(csv)
    shards_folder = find_shards_folder(csv)
    with convert_write_errors(shards_folder):
        shards_folder.mkdir(exist_ok=True)
    n_shards = _find_number_of_shards(shards_folder) if is_sharded(shards_folder) else count_workers(executor)
    tasks = make_shard_tasks(folder, images, csv, n_shards, **options)
    with SharedFolder(shards_folder, interrupt_when) as shared:
        summaries = run_tasks(tasks, executor, progress, shared=shared)
    merge_shards(shards_folder)
    shutil.rmtree(shards_folder, ignore_errors=True)
    return PredictionSummary.join(summaries.values())


def write_shard(
    scorer: Scorer,
    table: Any,
    csv: Path,
    description: Mapping[str, Any],
    shard: Shard,
    progress: Progress,
    *,
    hash_names: bool = False,
    command: str | None = None,
) -> PredictionSummary:
    """Write one shard into FILE.shards; a finished one is not predicted again, an interrupted one is continued.

    Args:
        scorer: the model.
        table: all images; see make_image_table.
        csv: the file that the shards will be joined to.
        description: of describe_prediction.
        shard: number of the shard, from 1, and number of all shards.
        progress: progress display.
        hash_names: see predict.
        command: the command line with SHARD_PLACEHOLDER, which merge_shards names for a missing shard; absolute paths
            are shortened.

    Raises:
        OutputError: the folder has shards of another prediction, or cannot be written; or `csv` exists; see
            write_prediction_csv.
    """
    folder = find_shards_folder(csv)
    with convert_write_errors(folder):
        folder.mkdir(exist_ok=True)
    finished = _read_shards(folder)
    for (number, n_shards), other in finished.items():
        difference = find_difference(other["description"], {**description, "rows": other["description"].get("rows")})
        if n_shards != shard[1]:
            problem = f"the folder has shards of {n_shards}, this command is a shard of {shard[1]}"
            fix = f"Pass a shard of {n_shards}, or remove this folder"
            raise OutputError(problem, fix, path=folder, code="E623")
        if difference:
            problem = f"shard {number} of {n_shards} in this folder has {difference}"
            raise OutputError(problem, "Repeat its command, or remove this folder", path=folder, code="E623")
    if shard in finished:
        log.info("shard %s of %s is finished already", *shard)
        return PredictionSummary.from_json(finished[shard]["summary"])
    reject_existing(csv)
    target, rows = find_shard_file(csv, shard), find_shard_rows(len(table), shard)
    if not rows:
        log.info("shard %s of %s has no images: shards start at multiples of %s images", *shard, ALIGNED_IMAGES)
    # an unfinished shard is replaced
    options = PredictionOptions(rows=rows, hash_names=hash_names, overwrite=True)
    summary = write_prediction_csv(scorer, table, target, description, progress, options)
    content = {
        "format": SHARD_FORMAT,
        "file": csv.name,
        "description": {**description, "rows": [rows.start, rows.stop]},
    }
    content |= {"sha256": compute_sha256(target), "n_bytes": target.stat().st_size, "summary": asdict(summary)}
    content["command"] = redact_command(command)
    write_json(folder / _name_shard(shard, "json"), content)
    return summary


def is_sharded(folder: str | Path) -> bool:
    """Return whether a folder has shards of a prediction, finished or not."""
    folder = Path(folder)
    return folder.is_dir() and any(SHARD_FILE_PATTERN.fullmatch(path.name) for path in folder.iterdir())


def merge_shards(folder: str | Path) -> Path:
    """Join all shards to the file that a single run writes, beside the folder, and return its path.

    An existing file is replaced only by the same bytes.

    Raises:
        InputMissingError: the folder has no shard, or one is missing or unfinished.
        OutputError: the shards are of different predictions, or one is damaged; or the file exists with other bytes,
            or cannot be written.
    """
    folder = Path(folder)
    if not is_sharded(folder):
        problem, fix = "no shards of a prediction in this folder", "Pass the folder FILE.shards"
        raise InputMissingError(problem, fix, path=folder, code="E624")
    shards = _read_shards(folder)
    n_shards = _find_number_of_shards(folder)
    _reject_missing_shards(folder, shards, n_shards)
    first = shards[1, n_shards]
    for shard in [(number, n_shards) for number in range(1, n_shards + 1)]:
        _validate_shard(folder, shard, shards[shard], first)
    target = folder.absolute().parent / first["file"]
    n_bytes = sum(one["n_bytes"] for one in shards.values())
    require_free_space(target.parent, n_bytes, "the file", "Free disk space and repeat the command")
    with atomic_file(target, overwrite=True) as temporary_path:
        names = [_name_shard((number, n_shards), "csv") for number in range(1, n_shards + 1)]
        _join_files([folder / name for name in names], temporary_path)
        if target.exists() and not (target.is_file() and filecmp.cmp(target, temporary_path, shallow=False)):
            reject_existing(target)
    return folder.parent / first["file"]


def _join_files(files: list[Path], joined_file: Path) -> None:
    """Write the rows of all files below the header of the first one."""
    with joined_file.open("wb") as joined:
        for path in files:
            with path.open("rb") as file:
                if path != files[0]:
                    _skip_header(file)
                shutil.copyfileobj(file, joined)


def _skip_header(file: BinaryIO) -> None:
    """Read the first line of a CSV; a label may contain a line feed between quotes."""
    header = file.readline()
    while header.count(b'"') % 2 and (line := file.readline()):
        header += line


def _name_shard(shard: Shard, suffix: str) -> str:
    return f"shard-{shard[0]}-of-{shard[1]}.{suffix}"


def _list_shard_files(folder: Path) -> dict[Path, Shard]:
    """Return the number of the shard and of all shards of each file in the folder."""
    matches = {path: SHARD_FILE_PATTERN.fullmatch(path.name) for path in sorted(folder.iterdir())}
    return {path: (int(match[1]), int(match[2])) for path, match in matches.items() if match}


def _read_shards(folder: Path) -> dict[Shard, dict[str, Any]]:
    """Return the JSON file of each finished shard. Raise OutputError for a damaged one."""
    files = {shard: path for path, shard in _list_shard_files(folder).items() if path.suffix == ".json"}
    return {shard: _read_shard(path) for shard, path in files.items()}


def _read_shard(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
        if content["format"] != SHARD_FORMAT or Path(content["file"]).name != content["file"]:
            raise ValueError("another format")
        PredictionSummary.from_json(content["summary"])
        if not isinstance(content["description"], dict) or not isinstance(content["n_bytes"], int):
            raise TypeError("another format")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        fix = "Remove this file and predict the shard again"
        raise OutputError("the description of a shard is damaged", fix, path=path, code="E622") from error
    return content


def _find_number_of_shards(folder: Path) -> int:
    totals = sorted({n_shards for _, n_shards in _list_shard_files(folder).values()})
    if len(totals) > 1:
        problem = f"shards of {join_names(list(map(str, totals)))} in one folder"
        raise OutputError(problem, "Remove those that you do not need", path=folder, code="E623")
    return totals[0]


def _reject_missing_shards(folder: Path, shards: Mapping[Shard, Mapping[str, Any]], n_shards: int) -> None:
    missing = [number for number in range(1, n_shards + 1) if (number, n_shards) not in shards]
    if not missing:
        return
    started = {number for path, (number, _) in _list_shard_files(folder).items() if path.name.endswith(PART_SUFFIX)}
    groups = {
        "missing": [str(number) for number in missing if number not in started],
        "not finished": [str(number) for number in missing if number in started],
    }
    states = [f"{join_names(numbers)} {state}" for state, numbers in groups.items() if numbers]
    commands, text = [one["command"] for one in shards.values() if one.get("command")], f"{missing[0]}/{n_shards}"
    default = f"Run the command of the other shards with `shard={text!r}`"
    fix = f"Run: {str(commands[0]).replace(SHARD_PLACEHOLDER, text)}" if commands else default
    raise InputMissingError(f"of {n_shards} shards: {', '.join(states)}", fix, path=folder, code="E624")


def _validate_shard(folder: Path, shard: Shard, content: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Raise OutputError for a shard of another prediction than the first one, or with other bytes than counted."""
    description, expected = content["description"], first["description"]
    rows = find_shard_rows(expected["n"], shard)
    difference = find_difference(description, {**expected, "rows": [rows.start, rows.stop]})
    if difference or content["file"] != first["file"]:
        problem = f"shard {shard[0]} has {difference or 'another file name'} than shard 1"
        fix = f"Remove {_name_shard(shard, 'json')} or that of shard 1, and predict the shard again"
        raise OutputError(problem, fix, path=folder, code="E623")
    path = folder / _name_shard(shard, "csv")
    if not path.is_file() or compute_sha256(path) != content["sha256"]:
        fix = f"Remove {_name_shard(shard, 'json')} and predict the shard again"
        raise OutputError("sha256 differs from the description of the shard", fix, path=path, code="E622")
