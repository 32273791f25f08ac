"""Commands on runs: list, report, evaluate, compare, verify."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from fastcxr.cli.app import RUNS, Device, EvaluateOptions, Precision, app, find_next_run_dir
from fastcxr.cli.launch import print_run_result
from fastcxr.cli.output import (
    DATA_ERROR_EXIT_CODE,
    console,
    is_json,
    make_open_step,
    print_line,
    print_next_steps,
    print_result,
    print_warning,
)
from fastcxr.cli.suggestions import COMMAND_SYNONYMS
from fastcxr.cli.tables import show_comparison, show_runs
from fastcxr.config.recipe import Recipe
from fastcxr.config.recipe_paths import make_data_name
from fastcxr.errors import InputMissingError
from fastcxr.io.formatting import pluralize
from fastcxr.io.hub_names import get_model_name
from fastcxr.io.packages import EVALUATION_MODULES, require_packages
from fastcxr.io.run_folders import RUNS_DIR
from fastcxr.progress.terminal import TerminalProgress


@app.command(name="list", group=RUNS, synonym=COMMAND_SYNONYMS["list"], usage="Usage: fastcxr list [FOLDER]")
def list_command(folder: Path | None = None) -> int:
    """List runs and exports with state, headline metrics and date.

    Parameters
    ----------
    folder
        folder that holds run folders and exports; default: runs
    """
    from fastcxr.workflows.list_runs import describe_runs

    runs = describe_runs(folder or RUNS_DIR) if folder or RUNS_DIR.is_dir() else []
    if runs and not is_json():
        show_runs(Console(), runs)
    if not runs:
        print_line(f"no runs in {folder or RUNS_DIR}")
    print_result(None, runs)
    interrupted = [row["folder"] for row in runs if row["state"].startswith(("interrupted", "folds"))]
    print_next_steps(*(f"resume: fastcxr resume {shlex.quote(str(path))}" for path in interrupted))
    return 0


@app.command(group=RUNS, usage="Usage: fastcxr report FOLDER [--no-images]")
def report(folder: Path, *, no_images: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Rewrite the report of a finished run, or the page of describe, audit or explain.

    Parameters
    ----------
    folder
        run folder, or folder of describe, audit or explain
    no_images
        report-no-images.html beside the report: the same metrics and figures without images, file names or patient
        identifiers, to share
    """
    if no_images:
        from fastcxr.report.run_page import write_image_free_report

        page = write_image_free_report(folder)
        print_result(page, {"folder": folder, "report": page})
        return 0
    if (folder / "explain.html").exists():
        from fastcxr.report.saliency_page import write_saliency_page as write_page
    elif (folder / "audit.html").exists():
        from fastcxr.report.pages import write_audit_page as write_page
    elif (folder / "describe.html").exists():
        from fastcxr.report.pages import write_dataset_page as write_page
    else:
        from fastcxr.report.run_page import write_run_report as write_page
    page = write_page(folder)
    if page.name == "report.html":
        return print_run_result(folder)
    print_result(page, {"folder": folder, "report": page})
    return 0


@app.command(
    group=RUNS, synonym=COMMAND_SYNONYMS["evaluate"], usage="Usage: fastcxr evaluate RUN --data DATA [OPTIONS]"
)
def evaluate(
    run: Path,
    *,
    options: Annotated[EvaluateOptions, Parameter(name="*")] = EvaluateOptions(),  # noqa: B008  it is frozen
    precision: Precision = "trained",
    device: Device = "auto",
    keep_overlap: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
) -> int:
    """Evaluate the model of a finished run on other data, and write its report.

    Parameters
    ----------
    run
        run folder of the trained model, or folder of its export, which needs onnxruntime and no torch; or
        hf://owner/name for a model on the hub
    keep_overlap
        evaluation also of images that overlap with training images of the run: the same pixels, near-duplicates, crops,
        other images of the same patients
    out
        folder to create; default: runs/RUN-on-DATA-NUMBER
    """
    require_packages(EVALUATION_MODULES, "an evaluation")  # before the import, which needs most of them
    from fastcxr.workflows.evaluate import evaluate as evaluate_run

    if options.data is None:
        raise InputMissingError("no dataset given", "Pass --data with the images to test on")
    data = Recipe(**asdict(options))
    folder = out or find_next_run_dir(f"{get_model_name(run)}-on-{make_data_name(data.data)}")
    command = shlex.join(["fastcxr", *sys.argv[1:]])
    progress = TerminalProgress(console)
    choices = {"precision": precision, "device": device, "keep_overlap": keep_overlap}
    evaluate_run(run, data, folder, progress, command=command, **choices)
    return print_run_result(folder)


@app.command(group=RUNS, usage="Usage: fastcxr compare RUNS... [OPTIONS]")
def compare(*runs: Path, out: Path | None = None) -> int:
    """Compare finished runs on their shared images: a leaderboard with paired significance tests.

    Parameters
    ----------
    runs
        run folders, also of cross-validation and evaluate
    out
        folder to create; default: runs/compare-NUMBER
    """
    from fastcxr.workflows.compare import compare as compare_runs

    folder = out or find_next_run_dir("compare")
    page = compare_runs(runs, folder)
    print_result(page, {"folder": folder, "report": page} | show_comparison(console, folder))
    print_next_steps(make_open_step(page))
    return 0


@app.command(group=RUNS, usage="Usage: fastcxr verify RUN")
def verify(run: Path) -> int:
    """Verify a run folder: checksums of all files, and metrics recomputed from predictions.csv.

    Parameters
    ----------
    run
        run folder, also of cross-validation
    """
    from fastcxr.workflows.verify import list_unverified
    from fastcxr.workflows.verify import verify as verify_run

    faults, n_files = verify_run(run)
    for fault in faults:
        print_warning(f"{fault.path}: {fault.problem}")
    unverified = list_unverified(run)
    for sentence in unverified:
        print_line(sentence)
    print_line(f"{pluralize(n_files, 'file')} checked, {pluralize(len(faults), 'fault')}")
    facts = {"folder": run, "n_files": n_files, "unverified": unverified}
    print_result(None, facts | {"faults": [asdict(fault) for fault in faults]})
    return DATA_ERROR_EXIT_CODE if faults else 0
