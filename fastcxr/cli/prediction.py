"""Output of the command predict: the CSV or the rows on standard output, and the numbers of images."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcxr.cli.dicom_options import NO_DICOM, DicomOptions
from fastcxr.cli.output import (
    PARTIAL_EXIT_CODE,
    console,
    is_json,
    print_critical_notices,
    print_line,
    print_next_steps,
    print_result,
    print_warning,
)
from fastcxr.cli.tables import MAX_PREDICTED_ROWS, show_top_findings
from fastcxr.io.formatting import pluralize
from fastcxr.progress.terminal import TerminalProgress
from fastcxr.workflows.critical_notices import list_critical_notices
from fastcxr.workflows.prediction import (
    PredictionOptions,
    PredictionSummary,
    describe_prediction,
    format_block,
    needs_quotes,
    predict_decided_blocks,
    write_prediction_csv,
)
from fastcxr.workflows.prediction_shards import (
    SHARD_PLACEHOLDER,
    Shard,
    find_shard_file,
    find_shards_folder,
    predict_in_shards,
    write_shard,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pandas as pd

    from fastcxr.inference.scores import Scorer
    from fastcxr.metrics.predictions import Predictions


class PredictionOutput:
    """The rows of one command: written in blocks, with the first images and, for --json, all rows for the terminal."""

    def __init__(self, folder: Path, scorer: "Scorer", table: "pd.DataFrame", *, hash_names: bool):
        self.folder, self.scorer, self.table, self.hash_names = folder, scorer, table, hash_names
        self.summary, self.rows, self.document = PredictionSummary(), [], {}
        self.first_blocks: list[Predictions] = []
        self.progress, self.dicom_results = TerminalProgress(console), None

    @cached_property
    def notices(self) -> list[dict[str, str]]:
        """Critical notices on the model; a damaged file of a run is logged once."""
        return list_critical_notices(self.folder, self.scorer)

    def describe(self) -> dict[str, Any]:
        """Return what the rows depend on; see describe_prediction."""
        return describe_prediction(self.folder, self.scorer, self.table, hash_names=self.hash_names)

    def write(self, csv: Path | None, dicom: DicomOptions = NO_DICOM) -> None:
        """Write the rows to a file, which an interrupted command continues, or to standard output; and DICOM files."""
        with dicom.open(self, csv) as self.dicom_results:
            if csv:
                self._write_csv(csv)
            else:
                self._write_to_stdout()
            if self.dicom_results:
                self.document |= dicom.print_counts(self.dicom_results.finish())

    def _write_csv(self, csv: Path) -> None:
        self.document["file"] = csv
        description = self.describe() | ({"dicom": self.dicom_results.uids} if self.dicom_results else {})
        # the JSON document has all rows, also those of an interrupted command
        options = PredictionOptions(hash_names=self.hash_names, restart=is_json(), see_block=self.see_block)
        self.summary = write_prediction_csv(self.scorer, self.table, csv, description, self.progress, options)

    def _write_to_stdout(self) -> None:
        quote_text, start = needs_quotes(self.table, self.scorer, hash_names=self.hash_names), 0
        for block in predict_decided_blocks(self.scorer, self.table, self.progress, hash_names=self.hash_names):
            self.see_block(block, self.table.iloc[start : start + len(block.table)])
            self.summary.add(block)
            if not is_json():
                sys.stdout.write(format_block(block, header=start == 0, quote_text=quote_text))
            start += len(block.table)

    def see_block(self, block: "Predictions", rows: "pd.DataFrame") -> None:
        """Write the DICOM results of a block, and keep its rows that the terminal or the JSON document shows."""
        if self.dicom_results:
            self.dicom_results.add(block, rows, self.progress)
        if is_json():
            from fastcxr.metrics.decisions import make_prediction_rows

            self.rows += make_prediction_rows(block)
        n_missing = MAX_PREDICTED_ROWS - sum(len(one.table) for one in self.first_blocks)
        if block.is_multi_label and n_missing > 0:
            self.first_blocks.append(block.select_readable(n_missing))

    def print_summary(self) -> int:
        """Print errors, critical notices and numbers of images, and return the exit code."""
        return print_prediction(
            self.summary,
            self.first_blocks,
            self.notices,
            {"predictions": self.rows} | self.document,
            has_ood_detector=self.scorer.has_ood_detector,
        )


def predict_with_workers(
    output: PredictionOutput, images: tuple[str, ...], csv: Path, executor: "Executor | None", **options: Any
) -> int:
    """Write the rows of all workers to a file, print the numbers of images, and return the exit code.

    `options`: see predict_shard.
    """
    summary = predict_in_shards(output.folder, images, csv, executor, output.progress, **options)
    return print_prediction(summary, [], output.notices, {"file": csv}, has_ood_detector=output.scorer.has_ood_detector)


def write_shard_csv(output: PredictionOutput, csv: Path, shard: Shard) -> int:
    """Write one shard, print its numbers of images and the command that joins the shards; return the exit code."""
    folder = find_shards_folder(csv)
    text = f"{shard[0]}/{shard[1]}"
    words = [SHARD_PLACEHOLDER.join(word.rsplit(text, 1)) if word.endswith(text) else word for word in sys.argv[1:]]
    command = shlex.join(["fastcxr", *words])
    options = {"hash_names": output.hash_names, "command": command}
    description = output.describe()
    summary = write_shard(output.scorer, output.table, csv, description, shard, TerminalProgress(console), **options)
    document = {"file": find_shard_file(csv, shard), "folder": folder, "shard": text}
    exit_code = print_prediction(summary, [], output.notices, document, has_ood_detector=output.scorer.has_ood_detector)
    print_next_steps(f"when all {shard[1]} shards are finished: {shlex.join(['fastcxr', 'merge', str(folder)])}")
    return exit_code


def print_prediction(
    summary: PredictionSummary,
    first_blocks: "Sequence[Predictions]",
    notices: Sequence[Mapping[str, str]],
    document: Mapping[str, Any],
    *,
    has_ood_detector: bool,
) -> int:
    """Print errors, critical notices and numbers of images, and return the exit code.

    Args:
        summary: the numbers and the first errors.
        first_blocks: the first images, for the table of findings.
        notices: critical notices on the model.
        document: further keys of the JSON document; file is the file that was written, which is the result.
        has_ood_detector: whether the model has an OOD detector.
    """
    counts = asdict(summary.counts)
    findings = counts.pop("findings")
    for path, error in summary.unreadable:
        print_warning(f"{path}: {error}")
    if n_more := counts["n_unreadable"] - len(summary.unreadable):
        print_warning(f"and {pluralize(n_more, 'more unreadable file')}: see the column error")
    print_critical_notices(notices)
    if first_blocks and findings is not None:
        show_top_findings(console, _join_first_rows(first_blocks), counts["n_classified"] + counts["n_ood"], findings)
    print_line(_describe_counts(counts, is_multi_label=findings is not None, has_ood_detector=has_ood_detector))
    counts |= {} if findings is None else {"findings": findings}
    print_result(document.get("file"), counts | {"critical": [notice["title"] for notice in notices], **document})
    return PARTIAL_EXIT_CODE if counts["n_unreadable"] else 0


def _join_first_rows(blocks: "Sequence[Predictions]") -> "Predictions":
    import pandas as pd

    from fastcxr.metrics.predictions import Predictions

    return Predictions(pd.concat([block.table for block in blocks], ignore_index=True), blocks[0].labels)


def _describe_counts(counts: Mapping[str, int], *, is_multi_label: bool, has_ood_detector: bool) -> str:
    """Return the numbers of images as a line."""
    verb, missing = ("predicted", "no decisions") if is_multi_label else ("classified", "no class assigned")
    summary = f"{pluralize(counts['n_classified'], 'image')} {verb}, {counts['n_unreadable']:,} unreadable"
    return summary + (f", {counts['n_ood']:,} out-of-distribution ({missing})" if has_ood_detector else "")
