"""Commands on datasets: describe, audit, pack."""

import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from fastcxr.cli.app import DATASETS, DescribeOptions, PackOptions, app, inspect_data
from fastcxr.cli.option_names import format_options
from fastcxr.cli.output import (
    DATA_ERROR_EXIT_CODE,
    PARTIAL_EXIT_CODE,
    console,
    make_open_step,
    print_line,
    print_next_steps,
    print_result,
)
from fastcxr.cli.suggestions import COMMAND_SYNONYMS
from fastcxr.cli.tables import show_dataset, show_findings
from fastcxr.config.recipe import Recipe
from fastcxr.errors import InputMissingError
from fastcxr.io.formatting import join_names
from fastcxr.progress.terminal import TerminalProgress

AUDIT_REUSED = "fastcxr train shows these results if images, labels, splits and patients are the same"
AUDIT_NOT_REUSED = (
    "fastcxr train does not show these results: it searches the folders in runs/ only. Leave out --out, or pass "
    "--out runs/NAME"
)


@app.command(group=DATASETS, synonym=COMMAND_SYNONYMS["describe"])
def describe(
    options: Annotated[DescribeOptions, Parameter(name="*")] = DescribeOptions(),  # noqa: B008  it is frozen
    *,
    out: Path | None = None,
    decode_all: Annotated[bool, Parameter(name="--all", negative=())] = False,
) -> int:
    """Describe a dataset before training: classes, splits, patients, images, gray values, unreadable files.

    Parameters
    ----------
    out
        folder to create; default: runs/describe-DATA-NUMBER
    decode_all
        decode every image; default: a random sample of 2,000 images of a larger dataset
    """
    from fastcxr.workflows.describe import describe as describe_data

    page = inspect_data(partial(describe_data, decode_all=decode_all), "describe", options, out)
    document = show_dataset(console, page.parent)
    print_result(page, {"folder": page.parent, "report": page, **document})
    data_options = format_options(vars(options))
    steps = [
        f"check for leakage and shortcuts: fastcxr audit {data_options}",
        f"train: fastcxr train {data_options}",
    ]
    if classes := document.get("training_classes"):
        class_options = f"--classes {shlex.quote(','.join(classes))}"
        steps.append(f"or train one label per image: fastcxr train {data_options} {class_options}")
    print_next_steps(make_open_step(page), *steps)
    return PARTIAL_EXIT_CODE if document["unreadable"] else 0


@app.command(group=DATASETS, synonym=COMMAND_SYNONYMS["audit"])
def audit(
    options: Annotated[DescribeOptions, Parameter(name="*")] = DescribeOptions(),  # noqa: B008  it is frozen
    *,
    out: Path | None = None,
) -> int:
    """Audit a dataset before training: leakage between splits, duplicates, shortcuts.

    Parameters
    ----------
    out
        folder to create; default: runs/audit-DATA-NUMBER
    """
    from fastcxr.workflows.audit import audit as audit_data
    from fastcxr.workflows.audit import is_reusable_audit

    page = inspect_data(audit_data, "audit", options, out)
    findings = show_findings(console, page.parent)
    failed = [finding for finding in findings if finding["verdict"] == "FAIL"]
    print_result(page, {"folder": page.parent, "report": page, "passed": not failed, "findings": findings})
    train_step = f"train: fastcxr train {format_options(vars(options))}".rstrip()
    steps = [*list_remedies(failed), f'or {train_step} --waive-audit "REASON"'] if failed else [train_step]
    print_next_steps(make_open_step(page), *steps)
    print_line(AUDIT_REUSED if is_reusable_audit(page.parent) else AUDIT_NOT_REUSED)
    return DATA_ERROR_EXIT_CODE if failed else 0


def list_remedies(findings: list[dict[str, Any]]) -> list[str]:
    """Return each fix once, after the titles of the findings that it is for."""
    titles_by_fix: dict[str, list[str]] = {}
    for finding in findings:
        titles_by_fix.setdefault(finding["fix"], []).append(finding["title"])
    return [f"{join_names(titles)}: {fix}" for fix, titles in titles_by_fix.items() if fix]


@app.command(group=DATASETS, usage="Usage: fastcxr pack DATA... --to FILE [OPTIONS]")
def pack(
    *data: str,
    to: Path,
    size: int | None = None,
    shuffle: bool = False,
    options: Annotated[PackOptions, Parameter(name="*")] = PackOptions(),  # noqa: B008  it is frozen
) -> int:
    """Pack images, labels, names and patients into one HDF5 file for --data.

    Parameters
    ----------
    data
        class folders, CSV, public dataset or packed file; several are merged
    to
        file to create, ending in .h5
    size
        side of the padded square image [pixels]; default: the size of each image
    shuffle
        random order of the images, set by the seed
    """
    from fastcxr.data.manifest import describe_manifest
    from fastcxr.data.pack import pack_dataset, shuffle_rows
    from fastcxr.workflows.load import read_recipe_manifest

    if not data:
        raise InputMissingError("no dataset given", "Pass a folder, a CSV or a public dataset after pack")
    recipe = Recipe(data=data, **asdict(options))
    # only_test: classes too small for training are allowed, since the file may be merged with other datasets
    manifest = read_recipe_manifest(recipe, only_test=True)
    print_line(describe_manifest(manifest))
    manifest = shuffle_rows(manifest, recipe.seed) if shuffle else manifest
    path = pack_dataset(manifest, to, size=size, skip_bad=recipe.skip_bad, progress=TerminalProgress(console))
    print_result(path, {"file": path, "n_bytes": path.stat().st_size, "n_images": len(manifest)})
    print_next_steps(f"train: fastcxr train --data {shlex.quote(str(path))}")
    return 0
