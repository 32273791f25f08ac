"""Description of a public dataset: how it is recognised and read, where it is from, and which images it shares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fastcxr.errors import RecipeError
from fastcxr.io.tables import suggest_name

SEE_PAGE = "see its page"
CREDENTIALED = "credentialed"  # in the access of datasets whose users sign an agreement as persons
TABLE_COUNTS = "label table in torchxrayvision 1.5.7, counted in November 2026"
DOCUMENTED_COUNTS = "documentation of torchxrayvision 1.5.7, read in November 2026"


@dataclass(frozen=True)
class ReaderOptions:
    """Options of a recipe that change how the labels of a dataset are read."""

    columns: tuple[str, ...] = ()  # "path=image", for tables of the user
    label_separator: str | None = None
    task: str = "auto"  # "multi_label": a single column of 0 and 1 of the user's table is a finding
    split_files: tuple[str, ...] = ()  # text files or tables with the names of the images of a split
    label_variant: str | None = None  # one of PublicDataset.label_variants; None: the first
    test_labels: str | None = None  # "radiologist": MIMIC-CXR-JPG's labels of the test set


@dataclass(frozen=True)
class PublicDataset:
    """A public dataset: facts for `fastcxr datasets`, its detector and its reader.

    `read` returns one row per image. Its index is the line in the table that gives the label (name "line"), or the
    number of the image (name "row"). Columns:
    - path: path of the image below the folder of `location`, or the name in the table if there is no such file
    - file: absolute path, missing if there is no such file
    - label: the label, blank if the dataset gives none; with several labels per image as in fastcxr.data.findings
    - finding_NAME: only with several labels per image
    - split: train, valid or test as published, else missing
    - patient, sex, age, view, source: if known
    - further columns that may be useful for `filter`, never free text
    Missing files and blank labels are rejected later, after the rows are selected.
    """

    name: str  # value of data_format
    title: str
    required: str  # what the data must contain, completes "expected ..."
    detect: Callable[
        [Path], Path | None
    ]  # takes a folder or file, returns the location for `read` if it is the dataset
    read: Callable[[Path, ReaderOptions], pd.DataFrame]
    labels: str = ""  # in words, e.g. "14 findings (several per image)"
    n_images: int | None = None  # of the complete dataset, None if not confirmed
    n_patients: int | None = None
    counts_from: str = ""  # where both numbers were read, and when
    page: str = ""  # address of the dataset
    access: str = SEE_PAGE  # how to obtain it, e.g. "free", "form", "PhysioNet credentialed"
    terms: str = ""  # what its page states on models trained on it, with the source; one sentence
    citation: str = ""
    files: Mapping[str, str] = field(default_factory=dict)  # pattern below the location to its content; for the check
    label_variants: Mapping[str, str] = field(default_factory=dict)  # name to description, the default first
    blank: str = "unknown"  # policy for blank labels, see fastcxr.data.label_policy
    blank_reason: str = ""  # why, completes "blank labels of NAME are read as absent: ..."
    missing_fix: str = "Complete the download"  # what to do about missing files
    overlaps: Mapping[str, str] = field(default_factory=dict)  # name of another dataset to which images it shares
    read_boxes: Callable[[Path], pd.DataFrame] | None = None  # path, finding, x, y, width, height [pixels]

    def find_variant(self, options: ReaderOptions) -> str:
        """Return the label variant of the options. Raise RecipeError (E022) for a name that is not one of them."""
        if options.label_variant is None:
            return next(iter(self.label_variants), "")
        if options.label_variant not in self.label_variants:
            suggestion = suggest_name(options.label_variant, self.label_variants)
            problem = f"{self.title} has no label variant called {options.label_variant!r}{suggestion}"
            names = " or ".join(self.label_variants)
            fix = f"Pass one of {names}" if names else "Leave out `label_variant`: its labels have no variants"
            raise RecipeError(problem, fix, code="E022")
        return options.label_variant
