"""Model card, metrics and recipe of a run for publishing, without paths, file names and patient identifiers."""

from pathlib import Path
from typing import Any

from fastcxr.io.files import read_json
from fastcxr.io.formats import FORMAT_KEY
from fastcxr.io.run_folders import require_run_file
from fastcxr.report.markdown import make_model_card
from fastcxr.report.run_reader import read_run_record
from fastcxr.report.shared_record import make_shared_options, make_shared_record


def make_shared_metrics(folder: str | Path) -> dict[str, Any]:
    """Return the content of metrics.json of a run folder: counts and metrics by split, class, source and subgroup.

    It names classes, sources, folds and subgroups, and no image or patient.

    Raises:
        InputMissingError: there is no metrics.json.
    """
    require_run_file(folder, "metrics.json")
    return read_json(Path(folder) / "metrics.json")


def make_shared_recipe(folder: str | Path) -> dict[str, Any]:
    """Return the content of recipe.json of a run folder for Recipe.from_json, with the dataset as a name.

    Options that may hold a path, a patient or free text are "not shared" if they were set (see make_shared_options).

    Raises:
        InputMissingError: there is no recipe.json.
    """
    require_run_file(folder, "recipe.json")
    content = read_json(Path(folder) / "recipe.json")
    return {FORMAT_KEY: content.get(FORMAT_KEY)} | make_shared_options(content)


def make_shared_card(folder: str | Path) -> str:
    """Return MODEL_CARD.md of a run folder without command, paths, file names and patient identifiers.

    It names files of the published folder only: recipe.json, metrics.json and report-no-images.html.

    Raises:
        InputMissingError: there is no predictions.csv or metrics.json.
    """
    metrics = make_shared_metrics(folder)
    return make_model_card(make_shared_record(read_run_record(folder)), metrics)
