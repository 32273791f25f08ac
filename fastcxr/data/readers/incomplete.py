"""Recognise a public dataset of which a file is missing by the names of its other files."""

from pathlib import Path

from fastcxr.data.readers.registry import PUBLIC_DATASETS

MIN_FILES = 2  # with a name of the dataset; one may be a file of the user


def describe_missing_file(folder: Path) -> str | None:
    """Return the first missing file of the public dataset to which the other files of a folder belong, or None.

    Only files and folders with a name of several words count: other data may have train.csv and images too.
    """
    for dataset in PUBLIC_DATASETS.values():
        contents = {pattern.partition("/")[0]: content for pattern, content in reversed(list(dataset.files.items()))}
        is_present = {name: any(folder.glob(name)) for name in contents if "_" in name or "-" in name}
        missing = [name for name in dataset.files if is_present.get(name) is False]
        if missing and sum(is_present.values()) >= MIN_FILES:
            return f"{missing[0]} ({contents[missing[0]]}) of {dataset.title}"
    return None
