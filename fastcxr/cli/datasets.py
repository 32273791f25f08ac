"""Command on public datasets: the catalogue, and the check of a download."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcxr.cli.app import DATASETS, app
from fastcxr.cli.output import PARTIAL_EXIT_CODE, print_next_steps, print_result
from fastcxr.errors import RecipeError
from fastcxr.io.formatting import pluralize

if TYPE_CHECKING:
    from fastcxr.data.readers.download_check import DownloadCheck
    from fastcxr.data.readers.public import PublicDataset

NOT_CONFIRMED = "see its page"
MAX_PARTS = 20  # folders with missing images that are listed


@app.command(group=DATASETS, usage="Usage: fastcxr datasets [NAME] [--data FOLDER]")
def datasets(name: str | None = None, *, data: Path | None = None) -> int:
    """List the public datasets that fastcxr reads as downloaded, show one, or check a download.

    Parameters
    ----------
    name
        name of a dataset, for its labels, access, overlaps and citation; default: the list of all
    data
        folder of the download of this dataset, whose tables and images are compared with what was published
    """
    from fastcxr.data.readers.download_check import check_download, find_dataset
    from fastcxr.data.readers.registry import PUBLIC_DATASETS

    if name is None:
        if data is not None:
            problem = "datasets with --data needs the name of a dataset"
            raise RecipeError(problem, f"Pass one of {', '.join(PUBLIC_DATASETS)} before --data")
        catalogue = [dataset for dataset in PUBLIC_DATASETS.values() if dataset.citation]  # no mere layouts
        text = "\n".join(format_entry(dataset) for dataset in catalogue)
        print_result(text, {"datasets": [describe_dataset(dataset) for dataset in catalogue]})
        print_next_steps("one of them: fastcxr datasets NAME", "a download: fastcxr datasets NAME --data FOLDER")
        return 0
    dataset = find_dataset(name)
    if data is None:
        print_result(format_facts(dataset), describe_dataset(dataset))
        return 0
    check = check_download(name, data)
    print_result(format_check(check), describe_check(check))
    if check.is_complete and not check.absent_files:
        print_next_steps(f"describe it: fastcxr describe --data {data}")
    return 0 if check.is_complete else PARTIAL_EXIT_CODE


def format_entry(dataset: "PublicDataset") -> str:
    """Return the two lines of a dataset in the list: its name and title, then images, labels, access and overlaps."""
    images = f"{dataset.n_images:,} images" if dataset.n_images else ""
    overlaps = f"shares images with {', '.join(dataset.overlaps)}" if dataset.overlaps else ""
    facts = (images, dataset.labels, f"access: {dataset.access}", overlaps)
    return f"{dataset.name}: {dataset.title}\n    {'; '.join(filter(None, facts))}"


def describe_dataset(dataset: "PublicDataset") -> dict[str, Any]:
    """Return the facts of a dataset for --json."""
    names = ("name", "title", "n_images", "n_patients", "counts_from", "labels", "access", "terms", "page", "citation")
    maps = ("files", "label_variants", "overlaps")
    facts = {name: getattr(dataset, name) for name in (*names, "blank")}
    return facts | {name: dict(getattr(dataset, name)) for name in maps}


def format_facts(dataset: "PublicDataset") -> str:
    """Return the facts of a dataset, one per line."""
    sizes = ((dataset.n_images, "image"), (dataset.n_patients, "patient"))
    counts = " of ".join(pluralize(number, unit) for number, unit in sizes if number)
    facts = {
        "images": f"{counts} ({dataset.counts_from})" if counts else NOT_CONFIRMED,
        "labels": dataset.labels or NOT_CONFIRMED,
        "access": dataset.access,
        "models trained on it": dataset.terms,
        "page": dataset.page,
        "citation": dataset.citation,
        "blank labels": f"read as absent: {dataset.blank_reason}" if dataset.blank == "negative" else "",
        "expected": dataset.required,
    }
    lines = [dataset.title, *(f"  {heading}: {text}" for heading, text in facts.items() if text)]
    for variant, text in dataset.label_variants.items():
        default = ", the default" if variant == next(iter(dataset.label_variants)) else ""
        lines.append(f"  --label-variant {variant}: {text}{default}")
    lines += [f"  shares images with {other}: {text}" for other, text in dataset.overlaps.items()]
    return "\n".join(lines)


def format_check(check: "DownloadCheck") -> str:
    """Return whether a download is complete, and what is missing, one fact per line."""
    expected = f" of {check.dataset.n_images:,} published" if check.dataset.n_images else ""
    known_state = "complete" if check.dataset.n_images else "no listed image is missing"
    state = known_state if check.is_complete else "partial"
    present = check.n_labelled - check.n_missing
    lines = [
        f"{check.dataset.title} in {check.location}: {state}",
        f"  {check.n_labelled:,} images{expected} are listed; {present:,} of them have a file",
    ]
    parts = list(check.missing_parts.items())
    lines += [
        f"  missing: {pluralize(count, 'image')}{f' in {part}' if part else ''}" for part, count in parts[:MAX_PARTS]
    ]
    if len(parts) > MAX_PARTS:
        lines.append(f"  missing: {pluralize(sum(n for _, n in parts[MAX_PARTS:]), 'image')} in other folders")
    if check.n_missing:
        lines.append(f"  such as {', '.join(check.missing_examples)}. {check.dataset.missing_fix}")
    return "\n".join([*lines, *(f"  not found: {name} ({content})" for name, content in check.absent_files.items())])


def describe_check(check: "DownloadCheck") -> dict[str, Any]:
    """Return the result of a check for --json."""
    return {
        "name": check.dataset.name,
        "complete": check.is_complete,
        "images": check.n_labelled,
        "published_images": check.dataset.n_images,
        "missing_images": check.n_missing,
        "missing_by_folder": check.missing_parts,
        "missing_files": check.absent_files,
    }
