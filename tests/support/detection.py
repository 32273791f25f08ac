"""Checks of the detector of a public dataset."""

from pathlib import Path

from fastcxr.data.readers.public import PublicDataset


def check_detection(dataset: PublicDataset, root: Path, *paths: str, location: str = "") -> None:
    """Check that the dataset is found from its folder (`location` below `root`), from its parent and from `paths`."""
    folder = root / location
    for path in (folder, folder.parent, *(folder / name for name in paths)):
        found = dataset.detect(path)
        assert found is not None and found.samefile(folder), path


def check_no_detection(dataset: PublicDataset, *paths: Path) -> None:
    assert {str(path): dataset.detect(path) for path in paths} == {str(path): None for path in paths}
