"""Comparison of finished runs: a leaderboard with paired tests, and ROC curves of all runs in one figure per class."""

import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastcxr.data.readers.registry import PUBLIC_DATASETS
from fastcxr.errors import InputMissingError, make_type_error
from fastcxr.io.files import atomic_write, read_json
from fastcxr.io.formats import reject_other_format
from fastcxr.io.formatting import join_names
from fastcxr.io.run_folders import require_run_file
from fastcxr.metrics.comparison import Comparison, compare_models
from fastcxr.metrics.predictions import PREDICTIONS_FILE, read_predictions
from fastcxr.report import figures
from fastcxr.report.html import render, write_page
from fastcxr.report.style import SvgFigure, to_svg_figure
from fastcxr.report.tables import format_finding_leaderboard, format_leaderboard
from fastcxr.workflows.load import PUBLIC_DATASETS_KEY
from fastcxr.workflows.run_dir import acquire_directory


def compare(runs: Iterable[str | Path], folder: str | Path) -> Path:
    """Compare finished runs, by out-of-fold predictions if they are pooled; return the path of compare.html.

    Raises InputMissingError for fewer than two different run folders, DataError for runs that cannot be compared.
    """
    if isinstance(runs, str) or not isinstance(runs, Iterable):  # the letters of a path are not run folders
        raise make_type_error("runs", runs, "a list of paths")
    run_dirs = [Path(run) for run in runs]
    if len(run_dirs) < 2:
        raise InputMissingError(f"expected at least 2 run folders, got {len(run_dirs)}", "Pass two or more run folders")
    if len({run_dir.resolve() for run_dir in run_dirs}) < len(run_dirs):
        raise InputMissingError("the same run folder is given twice", "Pass each run folder once")
    for run_dir in run_dirs:
        reject_other_format(run_dir)
        require_run_file(run_dir, PREDICTIONS_FILE)
    run_dir_by_name = dict(zip(_make_unique_names(run_dirs), run_dirs, strict=True))
    comparison = compare_models(
        {name: read_predictions(run_dir / PREDICTIONS_FILE) for name, run_dir in run_dir_by_name.items()}
    )
    folder = Path(folder)
    acquire_directory(folder)
    for row in comparison.rows:
        if comparison.predictions[row["name"]].is_multi_label:
            row["policies"] = _read_policies(run_dir_by_name[row["name"]])
    n_images, n_patients = comparison.n_shared_images, comparison.n_patients
    summary = {"rows": comparison.rows, "n_shared_images": n_images, "patients": n_patients}
    atomic_write(folder / "compare.json", json.dumps(summary, indent=2) + "\n")
    svg_figures = _make_roc_figures(comparison) if n_images else {}
    context = summary | {
        "models": format_leaderboard(comparison.rows),
        "findings": format_finding_leaderboard(comparison.rows),
        "curves": list(svg_figures),
        "critical_notices": [],
        "notices": [],
    }
    return write_page(folder / "compare.html", render("compare.html.jinja", context, svg_figures), svg_figures)


def _make_unique_names(run_dirs: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as few as make all names different."""
    parts = [run_dir.resolve().parts for run_dir in run_dirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(run_parts[-depth:]) for run_parts in parts]
        if len(set(names)) == len(names):
            break
    return names


def _read_policies(run_dir: Path) -> dict[str, str]:
    """Return how the training of a run read blank and uncertain labels, as texts; empty texts without a recipe.

    Without an option, blank labels are read as the public dataset states; those of other data are unknown.
    """
    recipe, run = (_read_object(run_dir / name) for name in ("recipe.json", "run.json"))
    public = [PUBLIC_DATASETS[name] for name in run.get(PUBLIC_DATASETS_KEY, ()) if name in PUBLIC_DATASETS]
    defaults = {dataset.blank for dataset in public} or {"unknown"}
    if len(defaults) > 1:
        defaults = {f"{dataset.blank} in {dataset.title}" for dataset in public}
    blank, uncertain = recipe.get("blank") or sorted(defaults), recipe.get("uncertain") or ["ignore"]
    return {"blank": ", ".join(blank), "uncertain": ", ".join(uncertain)} if recipe else {"blank": "", "uncertain": ""}


def _read_object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _make_roc_figures(comparison: Comparison) -> dict[str, SvgFigure]:
    predictions = {row["name"]: comparison.predictions[row["name"]] for row in comparison.rows}
    svg_figures = {}
    for class_number, label in enumerate(sorted(next(iter(predictions.values())).labels), 1):
        scores_by_model: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, part in predictions.items():
            k = part.labels.index(label)
            truth, score = part.truth[:, k], part.probability[:, k]
            is_known = np.isfinite(truth)
            scores_by_model[name] = truth[is_known] == 1, score[is_known]
        if all(truth.any() and not truth.all() for truth, _ in scores_by_model.values()):
            name, description = f"roc_{class_number}", f"ROC curves of {join_names(list(scores_by_model))} for {label}."
            plot = partial(figures.plot_roc_by_model, scores_by_model, label)
            svg_figures[name] = to_svg_figure(plot, name, description)
    return svg_figures
