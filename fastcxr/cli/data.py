"""Commands on datasets: describe, audit, pack."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastcxr.cli.app import (
    DATA_ERROR_EXIT_CODE,
    DATASETS,
    PARTIAL_EXIT_CODE,
    DescribeOptions,
    PackOptions,
    app,
    console,
    inspect_data,
    print_line,
)
from fastcxr.cli.tables import show_dataset, show_findings
from fastcxr.config.recipe import Recipe
from fastcxr.errors import InputMissingError
from fastcxr.progress.terminal import TerminalProgress


@app.command(group=DATASETS)
def describe(
    options: Annotated[DescribeOptions, Parameter(name="*")] = DescribeOptions(),  # noqa: B008  it is frozen
    *,
    out: Path | None = None,
) -> int:
    """Describe a dataset before training: classes, splits, patients, images, gray values, unreadable files.

    Parameters
    ----------
    out
        folder to create; default: runs/describe-DATA-NUMBER
    """
    from fastcxr.workflows.describe import describe as describe_data

    page = inspect_data(describe_data, "describe", options, out)
    n_unreadable = show_dataset(console, page.parent)
    print(page)
    return PARTIAL_EXIT_CODE if n_unreadable else 0


@app.command(group=DATASETS)
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

    page = inspect_data(audit_data, "audit", options, out)
    has_failures = show_findings(console, page.parent)
    print(page)
    return DATA_ERROR_EXIT_CODE if has_failures else 0


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
        class folders, CSV, public dataset or packed file; all are merged
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
    print(pack_dataset(manifest, to, size=size, skip_bad=recipe.skip_bad, progress=TerminalProgress(console)))
    return 0
