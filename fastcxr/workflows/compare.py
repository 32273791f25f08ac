"""Comparison of finished runs: a leaderboard with paired tests, and ROC curves of all runs in one figure per class."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastcxr.config.recipe import Recipe
from fastcxr.errors import DataError, InputMissingError, make_type_error
from fastcxr.io.files import atomic_write, read_json
from fastcxr.io.formats import reject_other_format
from fastcxr.io.formatting import join_names
from fastcxr.io.run_folders import name_run, require_run_file
from fastcxr.metrics.comparison import LABELS_DIFFER_CODE, Comparison, compare_models
from fastcxr.metrics.predictions import PREDICTIONS_FILE, read_predictions
from fastcxr.report import figures
from fastcxr.report.html import render, write_page
from fastcxr.report.label_counts import name_blank_policy
from fastcxr.report.style import SvgFigure, to_svg_figure
from fastcxr.report.tables import format_finding_comparison, format_leaderboard
from fastcxr.workflows.run_dir import acquire_directory

LABEL_OPTIONS = ("blank", "uncertain")  # options for unclear labels, which make a difference in training


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
    comparison = _compare_models(run_dir_by_name)
    folder = Path(folder)
    acquire_directory(folder)
    n_images, n_patients = comparison.n_shared_images, comparison.n_patients
    rows = _add_label_policies(comparison.rows, run_dir_by_name)
    summary = {"rows": rows, "n_shared_images": n_images, "patients": n_patients}
    atomic_write(folder / "compare.json", json.dumps(summary, indent=2) + "\n")
    svg_figures = _make_roc_figures(comparison) if n_images else {}
    context = summary | {"models": format_leaderboard(rows), "findings": format_finding_comparison(rows)}
    context |= {"curves": list(svg_figures), "critical_notices": [], "notices": []}
    return write_page(folder / "compare.html", render("compare.html.jinja", context, svg_figures), svg_figures)


def _compare_models(run_dirs: Mapping[str, Path]) -> Comparison:
    """Compare the models of the runs; if their labels differ (E312), the error states a difference in `blank`."""
    try:
        return compare_models({name: read_predictions(folder / PREDICTIONS_FILE) for name, folder in run_dirs.items()})
    except DataError as error:
        is_about_labels = error.code == LABELS_DIFFER_CODE
        policies = {name: _describe_blank(folder) for name, folder in run_dirs.items()} if is_about_labels else {}
        if "" in policies.values() or len(set(policies.values())) < 2:
            raise
        problem = f"{error.problem}: {join_names([f'{name} has {text}' for name, text in policies.items()])}"
        raise DataError(problem, "Train the runs with the same `blank`", code=error.code) from error


def _describe_blank(folder: Path) -> str:
    """Return how a run reads blank labels, such as `blank negative`; empty for a run without this information."""
    if not all((folder / name).is_file() for name in ("recipe.json", "run.json")):
        return ""
    return f"blank {name_blank_policy(Recipe.from_json(folder).blank, read_json(folder / 'run.json'))}"


def _add_label_policies(rows: list[dict[str, Any]], run_dirs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return the rows of findings with `label_policy`, the policies for unclear labels in which the runs differ."""
    names = [row["name"] for row in rows if (run_dirs[row["name"]] / "recipe.json").is_file()]
    if "findings" not in rows[0] or not names:
        return rows
    policies = {name: _read_label_policies(run_dirs[name]) for name in names}
    options = [option for option in LABEL_OPTIONS if len({policy[option] for policy in policies.values()}) > 1]
    texts = {name: "; ".join(f"{option} {policy[option]}" for option in options) for name, policy in policies.items()}
    return [row | {"label_policy": texts.get(row["name"], "not known")} for row in rows] if options else rows


def _read_label_policies(run_dir: Path) -> dict[str, str]:
    """Return the policy in effect of each of LABEL_OPTIONS as text; the default for blank labels is in run.json."""
    recipe, run_path = Recipe.from_json(run_dir), run_dir / "run.json"
    run = read_json(run_path) if run_path.is_file() else {}
    return {"blank": name_blank_policy(recipe.blank, run), "uncertain": ", ".join(recipe.uncertain) or "ignore"}


def _make_unique_names(run_dirs: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as few as make all names different.

    A fold and the best trial of a tuning have at least two.
    """
    parts = [run_dir.resolve().parts for run_dir in run_dirs]
    n_parts = [name_run(run_dir).count("/") + 1 for run_dir in run_dirs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(run_parts[-max(depth, n) :]) for run_parts, n in zip(parts, n_parts, strict=True)]
        if len(set(names)) == len(names):
            break
    return names


def _make_roc_figures(comparison: Comparison) -> dict[str, SvgFigure]:
    images = {row["name"]: comparison.predictions[row["name"]].to_arrays() for row in comparison.rows}
    svg_figures = {}
    for class_number, label in enumerate(sorted(next(iter(images.values())).labels), 1):
        scores_by_model = {}
        for name, part in images.items():
            k = list(part.labels).index(label)
            known = part.known[:, k]
            scores_by_model[name] = part.positive[known, k], part.probability[known, k]
        truth = next(iter(scores_by_model.values()))[0]
        if truth.any() and not truth.all():
            name, description = f"roc_{class_number}", f"ROC curves of {join_names(list(scores_by_model))} for {label}."
            plot = partial(figures.plot_roc_by_model, scores_by_model, label)
            svg_figures[name] = to_svg_figure(plot, name, description)
    return svg_figures
