"""DICOM results of predicted images: a structured report or a saliency map in one file for each image.

Each file is written under a temporary name and renamed, and its name is its SOP instance UID. A repeated command after
an interruption writes only the missing files.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.data.image_table import ImageInput, make_image_table
from fastcxr.errors import DataError, RecipeError
from fastcxr.export.dicom_attributes import (
    OTHER_CLASS,
    OTHER_CLASS_FIX,
    NewInstance,
    examine_file,
    make_uid,
    read_source,
)
from fastcxr.export.dicom_sc import make_sc
from fastcxr.export.dicom_sr import make_sr
from fastcxr.export.image_results import Algorithm, ImageResult, list_image_results
from fastcxr.export.saliency_image import draw_saliency_image
from fastcxr.inference.saliency_maps import SaliencyMap
from fastcxr.inference.scores import Scorer, list_shown_thresholds
from fastcxr.io.files import atomic_file, compute_sha256, read_json, require_free_space
from fastcxr.io.formatting import pluralize
from fastcxr.io.run_folders import EXPORT_JSON_FILE
from fastcxr.metrics.predictions import Predictions
from fastcxr.models.hub_download import find_model_dir
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.version import VERSION
from fastcxr.workflows.critical_notices import list_critical_notices
from fastcxr.workflows.dicom_folders import SUFFIX, DicomFolders, ResultFolder, open_result_folder
from fastcxr.workflows.load_scorer import load_scorer
from fastcxr.workflows.prediction import (
    PredictionSummary,
    describe_prediction,
    list_description_files,
    predict_decided_blocks,
)
from fastcxr.workflows.saliency_source import make_map_source

log = logging.getLogger("fastcxr")
SR_BYTES, SR_LABEL_BYTES, SC_BYTES = 6_000, 3_000, 2_500_000  # of a file; an upper estimate for the free space
NOT_DICOM_FIX = "Pass DICOM files only, or leave `dicom_sr` and `dicom_sc` out"
OLD_EXPORT_FIX = "Export them again with their UIDs, or leave them out"


def write_dicom_results(
    folder: str | Path,
    images: ImageInput | list[ImageInput],
    *,
    dicom_sr: str | Path | None = None,
    dicom_sc: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> PredictionSummary:
    """Predict DICOM files with a model, and write a DICOM result of each, as `fastcxr predict` does.

    The results have the patient attributes of the files. An interrupted call continues when it is repeated.

    Args:
        folder: of the model; see load_scorer.
        images: files and folders; see make_image_table.
        dicom_sr: new or empty folder for a structured report of each image.
        dicom_sc: new or empty folder for a secondary capture of each saliency map.
        progress: progress display.
        **options: precision, device and engine; see load_scorer.

    Returns:
        The numbers of images. An unreadable image has no result.

    Raises:
        DataError: an image is not in a DICOM file with UIDs.
        PackageError: highdicom is not installed.
        RecipeError: no folder is given, or both are the same.
        OutputError: a folder has other files, or cannot be written; see open_dicom_results.
    """
    if dicom_sr is None and dicom_sc is None:
        raise RecipeError("no folder for DICOM results", "Pass `dicom_sr='reports'`, `dicom_sc='maps'` or both")
    paths = {"dicom_sr": dicom_sr, "dicom_sc": dicom_sc}
    folders = DicomFolders(**{name: Path(path) for name, path in paths.items() if path is not None})
    folders.validate()
    folders.reject_input_folders(images)
    progress = progress or make_default_progress()
    table = make_image_table(images)
    reject_other_images(table, progress)
    folder = find_model_dir(folder, progress)
    scorer = load_scorer(folder, **options)
    description = describe_prediction(folder, scorer, table, hash_names=False)
    algorithm = describe_algorithm(folder, scorer, description["model"], list_critical_notices(folder, scorer))
    summary, start = PredictionSummary(), 0
    with open_dicom_results(folders, scorer, table, algorithm, description) as results:
        for block in predict_decided_blocks(scorer, table, progress):
            results.add(block, table.iloc[start : start + len(block.table)], progress)
            summary.add(block)
            start += len(block.table)
        results.finish()
    return summary


def reject_other_images(table: pd.DataFrame, progress: Progress, *, show_names: bool = True) -> None:
    """Read all headers, and raise DataError if an image is not in a DICOM file with UIDs.

    Warn about values that results have not, and about files with the same SOPInstanceUID. An unreadable file is
    accepted: it has an error in its row, and no result.

    Args:
        table: the images; see make_image_table.
        progress: shows a bar.
        show_names: whether the message contains a file name.
    """
    problems: list[tuple[str, str]] = []
    paths_by_uid: dict[str, list[str]] = {}
    lost_tags: Counter[str] = Counter()
    with progress.bar(len(table), "reading DICOM headers") as bar:
        for path, file in zip(table["path"], table["file"], strict=True):
            facts = examine_file(file)
            if facts.problem:
                problems.append((str(path), facts.problem))
            elif facts.sop_uid:
                paths_by_uid.setdefault(facts.sop_uid, []).append(str(path))
                lost_tags.update(facts.lost_tags)
            bar.advance()
    if problems:
        path, problem = problems[0]
        count = f"{len(problems):,} of {pluralize(len(table), 'image')} can have no DICOM result; the first one"
        is_header = "DICOM header" in problem
        fix, code = (OLD_EXPORT_FIX, "E722") if is_header else (NOT_DICOM_FIX, "E721")
        fix = OTHER_CLASS_FIX if problem == OTHER_CLASS else fix
        raise DataError(f"{count}: {problem}", fix, path=path if show_names else None, code=code)
    _warn_lost_tags(lost_tags)
    _warn_same_uids([paths for paths in paths_by_uid.values() if len(paths) > 1], show_names=show_names)


def _warn_lost_tags(counts: Mapping[str, int]) -> None:
    if not counts:
        return
    names = sorted(counts, key=lambda name: name != "PatientID")
    text = ", ".join(f"{name} of {pluralize(counts[name], 'image')}" for name in names)
    risk = "; with an empty PatientID, a PACS may store a result for another patient" if "PatientID" in counts else ""
    log.warning(
        "values that DICOM does not allow are empty or cut in the results: %s%s. Correct the images", text, risk
    )


def _warn_same_uids(groups: list[list[str]], *, show_names: bool) -> None:
    if groups:
        count = pluralize(sum(map(len, groups)), "file")
        names = f", the first ones {groups[0][0]} and {groups[0][1]}" if show_names else ""
        text = "%s with the SOPInstanceUID of another one%s: several results refer to one image. Leave copies out"
        log.warning(text, count, names)


def describe_algorithm(
    folder: str | Path, scorer: Scorer, checksum: str, notices: Sequence[Mapping[str, str]]
) -> Algorithm:
    """Return name, checksums, versions and critical notices of the model in a folder.

    `checksum`: the entry `model` of describe_prediction. `notices`: of list_critical_notices.
    """
    folder = Path(folder)
    files = list_description_files(folder)
    sums = [f"sha256 of {file.relative_to(folder).as_posix()}: {compute_sha256(file)}" for file in files]
    versions = f"fastcxr {VERSION}; {scorer.task}; {scorer.image_size} x {scorer.image_size} pixels"
    name = _read_backbone(files[0]) if files else ""
    return Algorithm(
        name=f"fastcxr {name}".strip(),
        checksum=checksum,
        parameters=(*sums, f"{versions}; {scorer.dtype_and_device}"),
        version=VERSION,
        notices=tuple(notice["title"] for notice in notices),
    )


def _read_backbone(file: Path) -> str:
    content = read_json(file)
    if file.name == EXPORT_JSON_FILE:
        return str(content.get("run", {}).get("backbone", ""))
    return "{library}:{name}".format(**content["backbone"])


class DicomResults:
    """The DICOM results of one prediction; see open_dicom_results."""

    def __init__(self, parts: Mapping[str, ResultFolder], scorer: Scorer, algorithm: Algorithm, table: pd.DataFrame):
        self.parts, self.scorer, self.algorithm, self.table = parts, scorer, algorithm, table
        self.thresholds = list_shown_thresholds(scorer)
        self.method, self.make_maps = make_map_source(scorer, table) if "SC" in parts else ("", None)

    @property
    def uids(self) -> dict[str, str]:
        """Identifier of each folder, which a prediction that continues must find again."""
        return {kind: part.uid for kind, part in self.parts.items()}

    def add(self, block: Predictions, rows: pd.DataFrame, progress: Progress) -> None:
        """Write the results of a block of images, except those that an interrupted command has written.

        Args:
            block: the predictions, with the columns of apply_thresholds.
            rows: of the images in the table, in the same order; the index is the position in the table.
            progress: shows a bar.
        """
        results = list_image_results(block, self.thresholds)
        maps = iter(self.make_maps(rows.reset_index(drop=True), block) if self.make_maps else ())
        with progress.bar(len(rows), "writing DICOM results") as bar:
            for row, result in zip(rows.itertuples(), results, strict=True):
                saliency_map = next(maps, None)
                if result is not None:
                    self._write(row, result, saliency_map)
                bar.advance()

    def _write(self, row: Any, result: ImageResult, saliency_map: SaliencyMap | None) -> None:
        number, source = int(row.Index) + 1, None
        for kind, part in self.parts.items():
            instance = NewInstance(make_uid(part.uid, kind, str(row.source), str(row.path)), number)
            target = part.folder / f"{instance.uid}{SUFFIX}"
            if target.exists():
                continue
            source = source or read_source(str(row.file), str(row.path))
            if kind == "SR":
                new = make_sr(source, result, self.algorithm, instance)
            else:
                assert saliency_map is not None
                pixels = draw_saliency_image(saliency_map, result, self.algorithm, method=self.method)
                new = make_sc(source, result, pixels, self.algorithm, instance, method=self.method)
            with atomic_file(target) as temporary_path:
                new.save_as(temporary_path)

    def finish(self) -> dict[str, int]:
        """End the prediction, and return the number of files of each kind."""
        return {kind: part.finish() for kind, part in self.parts.items()}


@contextmanager
def open_dicom_results(
    folders: DicomFolders, scorer: Scorer, table: pd.DataFrame, algorithm: Algorithm, description: Mapping[str, Any]
) -> Iterator[DicomResults]:
    """Yield the writer of the results of a prediction; without `finish`, a repeated command continues it.

    Args:
        folders: where the files are written.
        scorer: the model.
        table: all images; see make_image_table and reject_other_images.
        algorithm: of describe_algorithm.
        description: of describe_prediction.

    Raises:
        OutputError: a folder has other files, or results of another prediction, or cannot be written.
        StorageError: the free disk space is too small.
        BusyError: another process writes into the folder.
        ModelError: the saliency maps of the model fail their sanity check.
    """
    folders.validate()
    with ExitStack() as stack:
        parts = {}
        for kind, path in folders.list_kinds().items():
            outputs = {"outputs": folders.hash_other_outputs(kind)}
            parts[kind] = stack.enter_context(open_result_folder(path, kind, {**description, **outputs}))
            file_bytes = SR_BYTES + SR_LABEL_BYTES * len(scorer.labels) if kind == "SR" else SC_BYTES
            needed = file_bytes * (len(table) - parts[kind].count_files())
            require_free_space(path, needed, "the DICOM results", "Free disk space and repeat the command")
        try:
            yield DicomResults(parts, scorer, algorithm, table)
        except KeyboardInterrupt as interrupt:
            if n_files := sum(part.count_files() for part in parts.values()):
                interrupt.add_note(f"{pluralize(n_files, 'DICOM result')} written")
            raise
