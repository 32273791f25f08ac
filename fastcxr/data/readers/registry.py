"""Public datasets that fastcxr reads as they are downloaded, by the name that `data_format` and the catalogue use."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

from fastcxr.data.readers import (
    brax,
    chexlocalize,
    chexpert,
    cohen,
    coronahack,
    covid_radiography,
    covidx,
    imagefolder,
    kermany,
    mimic_cxr_jpg,
    nih,
    padchest,
    rsna,
    shenzhen,
    siim_acr,
    tbx11k,
    vindr_cxr,
)
from fastcxr.data.readers.public import PublicDataset
from fastcxr.data.readers.visible_files import list_only_folders

MIN_FILES = 2  # with a name of the dataset; one may be a file of the user
PUBLIC_DATASETS: dict[str, PublicDataset] = {
    dataset.name: dataset
    for dataset in (
        nih.DATASET,
        chexpert.DATASET,
        chexlocalize.DATASET,
        mimic_cxr_jpg.DATASET,
        padchest.DATASET,
        vindr_cxr.VINDR_CXR,
        vindr_cxr.VINBIGDATA,
        brax.DATASET,
        rsna.DATASET,
        siim_acr.DATASET,
        tbx11k.DATASET,
        shenzhen.SHENZHEN,
        shenzhen.MONTGOMERY,
        coronahack.DATASET,
        cohen.DATASET,
        covidx.DATASET,
        covid_radiography.DATASET,
        kermany.DATASET,
        imagefolder.DATASET,
    )
}


def detect_public_datasets(path: Path) -> dict[str, Path]:
    """Return the public datasets that a folder or table contains, each with the location for its reader."""
    folders = list_only_folders(path)
    return {name: found for name in PUBLIC_DATASETS if (found := _detect_first(name, folders))}


def find_public_dataset(name: str, path: Path) -> Path | None:
    """Return the location of a public dataset in a folder, or in the only folder inside it, or None."""
    return _detect_first(name, list_only_folders(path))


def _detect_first(name: str, paths: Iterable[Path]) -> Path | None:
    return next(filter(None, map(PUBLIC_DATASETS[name].detect, paths)), None)


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


def describe_overlaps(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return a sentence for each pair of a dataset in `names` and another in `others` that share images."""
    pairs = {tuple(sorted(pair)) for pair in product(names, others) if set(pair) <= PUBLIC_DATASETS.keys()}
    sentences = []
    for one, other in sorted(pairs):
        for a, b in ((one, other), (other, one)):
            if one != other and (text := PUBLIC_DATASETS[a].overlaps.get(b)):
                sentences.append(f"{PUBLIC_DATASETS[a].title} shares images with {PUBLIC_DATASETS[b].title}: {text}")
                break
    return sentences
