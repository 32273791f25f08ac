"""Assign groups (patients or images) to splits, stratified by label.

A group is never divided between splits. The groups are shuffled, and each is assigned to the split that is most below
its target for the stratum (the groups with the same labels). Before that, every split gets a group of each class if
possible. The order depends on the names of groups, never on the names of labels: a renamed class keeps its split.

A group with several labels counts for each of them, as in iterative stratification (Sechidis et al. 2011).
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from fastcxr.data.findings import is_multi_label, list_findings
from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import format_names

SPLIT_PERCENT = {"train": 70, "test": 15, "valid": 15}  # in order of precedence if two splits are equally far below
MAX_ATTEMPTS = 20  # shuffles to try if patients with several labels prevent a complete set of classes in every split
Labels = tuple[str, ...]
TOO_FEW_CODE = "E004"  # error code of a class that is too small to be split
NO_SPLIT_CODE = "E017"  # error code of given splits that lack some images


@dataclass
class Tally:
    """Number of assigned groups of each class and stratum, in total and in each split."""

    split_percent: Mapping[str, int]
    counts: Counter = field(default_factory=Counter)

    def add(self, labels: Labels, split: str) -> None:
        """Count a group that is assigned to a split."""
        for key in (labels, *labels):
            self.counts.update((key, (key, split)))

    def most_deficient_split(self, labels: Labels) -> str:
        """Return the split furthest below its target for this stratum and these classes, computed with integers."""
        keys, total = (labels, *labels), sum(self.split_percent.values())

        def deficit(split: str) -> int:
            return sum(self.split_percent[split] * (self.counts[k] + 1) - total * self.counts[k, split] for k in keys)

        return max(self.split_percent, key=deficit)


def assign_stratified(
    groups: Mapping[str, Labels],
    fixed: Mapping[str, str],
    *,
    seed: int,
    split_percent: Mapping[str, int] = SPLIT_PERCENT,
) -> dict[str, str]:
    """Return the split of each group; groups in `fixed` keep theirs.

    The order of `groups` and the names of labels have no effect.
    """
    groups_per_label = Counter(label for labels in groups.values() for label in labels)
    unavoidable = sum(max(len(split_percent) - size, 0) for size in groups_per_label.values())
    attempts = []
    for attempt in range(MAX_ATTEMPTS):
        shuffled = _shuffle(groups, f"{seed} {attempt}")
        assigned = _assign_once(shuffled, fixed, split_percent)
        attempts.append((count_missing_classes(groups, assigned, split_percent), assigned))
        if sum(attempts[-1][0]) <= unavoidable:
            break
    return min(attempts, key=lambda attempt: attempt[0])[1]


def count_missing_classes(
    groups: Mapping[str, Labels], assigned: Mapping[str, str], split_percent: Iterable[str]
) -> tuple[int, ...]:
    """Return the number of classes without a group in each split."""
    classes = {label for labels in groups.values() for label in labels}
    present = {(label, assigned[group]) for group, labels in groups.items() for label in labels}
    return tuple(sum((label, split) not in present for label in classes) for split in split_percent)


def _shuffle(groups: Mapping[str, Labels], salt: str) -> dict[str, Labels]:
    """Return the groups in the order of their hashes; those with several labels first, which are hardest to balance."""

    def hash_name(group: str) -> bytes:
        return hashlib.sha256(f"{salt} {group}".encode("utf-8", "surrogateescape")).digest()

    order = sorted(groups, key=lambda group: (-len(groups[group]), hash_name(group)))
    return {group: groups[group] for group in order}


def _assign_once(
    groups: dict[str, Labels], fixed: Mapping[str, str], split_percent: Mapping[str, int]
) -> dict[str, str]:
    tally, assigned = Tally(split_percent), dict(fixed)
    for group, split in fixed.items():
        tally.add(groups[group], split)
    _assign_each_class(groups, tally, assigned)
    for group, labels in groups.items():
        if group not in assigned:
            assigned[group] = tally.most_deficient_split(labels)
            tally.add(labels, assigned[group])
    return assigned


def _assign_each_class(groups: dict[str, Labels], tally: Tally, assigned: dict[str, str]) -> None:
    """Assign a group of each class to each split, the rarest class first; if there are two, to train and test."""
    positions: dict[str, list[int]] = {}  # of the groups of each class: they order equally rare classes without names
    names = list(groups)
    for position, labels in enumerate(groups.values()):
        for label in labels:
            positions.setdefault(label, []).append(position)
    for label in sorted(positions, key=lambda name: (len(positions[name]), positions[name])):
        for split in tally.split_percent:
            # the last groups have the fewest labels, and so influence other classes least
            candidates = (names[position] for position in reversed(positions[label]))
            unassigned = (group for group in candidates if group not in assigned)
            group = None if tally.counts[label, split] else next(unassigned, None)
            if group is not None:
                assigned[group] = split
                tally.add(groups[group], split)


def validate_classes(table: pd.DataFrame, path: str | Path | None = None, *, only_test: bool = False) -> None:
    """Raise unless there are images (E002) of two classes (E003) with two images each (E004) and clear names (E006).

    `only_test`: the images are only evaluated, so one image of one class is enough.
    """
    if table.empty:
        fix = "Pass PNG, JPEG, TIFF, BMP or DICOM files in one folder per class, or a CSV"
        raise InputMissingError("0 images", fix, path=path, code="E002")
    labels = list_findings(table) or sorted(table["label"].unique())
    _reject_similar_names(labels, path)
    if only_test or is_multi_label(table):
        return
    if len(labels) == 1:
        problem = f"the images have one class only, {labels[0]!r}"
        raise DataError(problem, "Pass images of at least two classes", path=path, code="E003")
    require_two_groups(table, "image", path)


def require_two_groups(table: pd.DataFrame, unit: str = "patient", path: str | Path | None = None) -> None:
    """Raise DataError (E004) for a class with one patient or image, which cannot be in both train and test.

    With given splits, this does not apply to classes in train.
    """
    train_labels = set(table.loc[table["split"] == "train", "label"]) if table["split"].notna().all() else set()
    counts = table.groupby("label").agg(images=("path", "size"), patients=("patient", "nunique"))
    too_small = counts[(counts["patients" if unit == "patient" else "images"] < 2) & ~counts.index.isin(train_labels)]
    if len(too_small):
        sizes = zip(too_small.index, too_small["images"], strict=True)
        examples = format_names(f"{label!r} ({pluralize(n, 'image')} of 1 patient)" for label, n in sizes)
        problem = f"too few {unit}s for train and test in class {examples}"
        fix = f"Add {unit}s (at least 2, better 20), or leave out the class (`classes` lists those to keep)"
        raise DataError(problem, fix, path=path, code=TOO_FEW_CODE)


def _reject_similar_names(labels: list[str], path: str | Path | None) -> None:
    """Raise DataError (E006) for names that differ only in case, spaces or Unicode normalization."""
    labels_by_folded_name: dict[str, list[str]] = {}
    for label in labels:
        folded = unicodedata.normalize("NFKC", label).casefold()
        labels_by_folded_name.setdefault("".join(unicodedata.normalize("NFKC", folded).split()), []).append(label)
    groups = [group for group in labels_by_folded_name.values() if len(group) > 1]
    if groups:
        examples = format_names(" and ".join(map(ascii, group)) for group in groups)
        problem = f"class names differ only in case, spaces or Unicode normalization: {examples}"
        relabel = [f"{name}={last}" for *others, last in groups for name in others]
        fix = f"Give each class one name, or pass `relabel={relabel}`"
        raise DataError(problem, fix, path=path, code="E006")
