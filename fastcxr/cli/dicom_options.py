"""Options of predict for DICOM results: --dicom-sr and --dicom-sc."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from fastcxr.cli.output import console, print_line
from fastcxr.errors import RecipeError
from fastcxr.io.formatting import pluralize
from fastcxr.progress.terminal import TerminalProgress

if TYPE_CHECKING:
    import pandas as pd

    from fastcxr.workflows.dicom_results import DicomResults

KIND_NAMES = {"SR": "structured report", "SC": "secondary capture"}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DicomOptions:
    """Folders of the DICOM results."""

    dicom_sr: Path | None = None
    "new folder for a DICOM structured report of each image, with the patient attributes of its DICOM file"
    dicom_sc: Path | None = None
    "new folder for a DICOM image of each saliency map (secondary capture), with the same patient attributes"

    @property
    def is_wanted(self) -> bool:
        """Whether one of the options is given."""
        return self.dicom_sr is not None or self.dicom_sc is not None

    def validate(self, images: tuple[str, ...], *, is_divided: bool) -> None:
        """Raise an error, before the model is loaded, for folders that cannot be written or a divided prediction."""
        if not self.is_wanted:
            return
        from fastcxr.workflows.dicom_folders import DicomFolders

        if is_divided:
            option = "--dicom-sr" if self.dicom_sr else "--dicom-sc"
            problem = f"{option} cannot be combined with --shard, --jobs and --cluster"
            raise RecipeError(problem, "Leave them out: one process writes all DICOM results")
        folders = DicomFolders(**asdict(self))
        folders.validate()
        folders.reject_input_folders(images)

    def reject_other_images(self, table: "pd.DataFrame", *, hash_names: bool) -> None:
        """Raise DataError if a DICOM result is wanted, and an image is not in a DICOM file with UIDs."""
        if self.is_wanted:
            from fastcxr.workflows.dicom_results import reject_other_images

            reject_other_images(table, TerminalProgress(console), show_names=not hash_names)

    @contextmanager
    def open(self, output: Any, csv: Path | None) -> "Iterator[DicomResults | None]":
        """Yield the writer of the results of a PredictionOutput, whose rows are in `csv`; None without folders."""
        if not self.is_wanted:
            yield None
            return
        from fastcxr.workflows.dicom_folders import DicomFolders
        from fastcxr.workflows.dicom_results import describe_algorithm, open_dicom_results

        description, folders = output.describe(), DicomFolders(**asdict(self), csv=csv)
        algorithm = describe_algorithm(output.folder, output.scorer, description["model"], output.notices)
        with open_dicom_results(folders, output.scorer, output.table, algorithm, description) as results:
            yield results

    def print_counts(self, counts: dict[str, int]) -> dict[str, Any]:
        """Print the number of files in each folder, and return the entries of the JSON document."""
        folders = {"SR": self.dicom_sr, "SC": self.dicom_sc}
        for kind, n_files in counts.items():
            print_line(f"{pluralize(n_files, KIND_NAMES[kind])} in {folders[kind]}")
        return {f"dicom_{kind.lower()}": {"folder": folders[kind], "n_files": n} for kind, n in counts.items()}


NO_DICOM = DicomOptions()
