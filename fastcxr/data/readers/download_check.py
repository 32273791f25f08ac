"""Compare a downloaded public dataset with what its publishers describe: label tables, images, missing files."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastcxr.data.readers.public import PublicDataset, ReaderOptions
from fastcxr.data.readers.registry import PUBLIC_DATASETS, find_public_dataset
from fastcxr.errors import DataError, RecipeError
from fastcxr.io.paths import reject_missing_paths
from fastcxr.io.tables import suggest_name


@dataclass(frozen=True)
class DownloadCheck:
    """Result of `check_download`; a part is the folder of an image, or "" for an image that is named without one."""

    dataset: PublicDataset
    location: Path
    absent_files: dict[str, str]  # pattern of a file to its content
    n_labelled: int  # images in the label tables
    n_missing: int  # of these, images without a file
    missing_parts: dict[str, int]  # missing images of each part, the most first
    missing_examples: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every labelled image is there, and as many images are labelled as published, if that is known."""
        return not self.n_missing and self.n_labelled >= (self.dataset.n_images or 0)


def find_dataset(name: str) -> PublicDataset:
    """Return the public dataset of this name. Raises RecipeError (E022) with a suggestion."""
    if name not in PUBLIC_DATASETS:
        problem = f"no public dataset is called {name!r}{suggest_name(name, PUBLIC_DATASETS)}"
        raise RecipeError(problem, "`fastcxr datasets` lists all of them", code="E022")
    return PUBLIC_DATASETS[name]


def check_download(name: str, folder: str | Path) -> DownloadCheck:
    """Compare a folder with the public dataset of this name. No image is opened.

    Raises:
        DataError: the folder does not contain the dataset (E036), or its tables are damaged.
        InputMissingError: there is no such folder.
        RecipeError: no dataset has this name (E022).
    """
    dataset, folder = find_dataset(name), Path(folder).expanduser()
    reject_missing_paths([folder], "Pass the folder of the download")
    location = find_public_dataset(name, folder)
    if location is None:
        problem = f"the folder is not {dataset.title}, expected {dataset.required}"
        raise DataError(problem, "Pass the folder into which the dataset was unpacked", path=folder, code="E036")
    rows = dataset.read(location, ReaderOptions())
    missing = rows.loc[rows["file"].isna(), "path"]
    parts = Counter(str(PurePosixPath(path).parent).removeprefix(".") for path in missing)
    root = location if location.is_dir() else location.parent
    absent = {pattern: content for pattern, content in dataset.files.items() if next(root.glob(pattern), None) is None}
    return DownloadCheck(
        dataset, location, absent, len(rows), len(missing), dict(parts.most_common()), tuple(missing.head(5))
    )
