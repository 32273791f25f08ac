"""Public datasets that fastcxr reads as they are downloaded, by the name that `data_format` and the catalogue use."""

from pathlib import Path

from fastcxr.data.readers import chexlocalize, chexpert, cohen, coronahack, covidx, nih
from fastcxr.data.readers.public import PublicDataset

PUBLIC_DATASETS: dict[str, PublicDataset] = {
    module.DATASET.name: module.DATASET for module in (cohen, coronahack, covidx, nih, chexpert, chexlocalize)
}


def detect_public_datasets(path: Path) -> dict[str, Path]:
    """Return the public datasets that a folder or table contains, each with the location for its reader."""
    return {name: found for name, dataset in PUBLIC_DATASETS.items() if (found := dataset.detect(path))}
