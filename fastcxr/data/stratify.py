"""Units (patients or images) with their labels come in; the split of each, dealt in fair shares, goes out.

Whole units are dealt, so none stands in two splits. Within a stratum (units with the same labels) they are shuffled,
and each goes where most is wanting. First every split gets a unit of every class that has enough of them.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.tables import format_names

SPLIT_PERCENT = {
    "train": 70,
    "test": 15,
    "valid": 15,
}  # of a hundred patients; where two want the same, the first is served
MAX_ATTEMPTS = 20  # shuffles to try where patients with several labels make it hard to serve every class
Labels = tuple[str, ...]
TOO_FEW_CODE = "E004"  # a class that cannot be split


@dataclass
class Tally:
    """What lies on the table: how many units of each class and of each stratum, in all and in each split."""

    split_percent: Mapping[str, int]
    counts: Counter = field(default_factory=Counter)

    def add(self, labels: Labels, split: str) -> None:
        for key in (labels, *labels):
            self.counts.update((key, (key, split)))

    def most_deficient_split(self, labels: Labels) -> str:
        """The split that lacks most of this stratum and of these classes once one more is dealt; in whole numbers."""
        keys, total = (labels, *labels), sum(self.split_percent.values())

        def lack(split: str) -> int:
            return sum(self.split_percent[split] * (self.counts[h] + 1) - total * self.counts[h, split] for h in keys)

        return max(self.split_percent, key=lack)


def assign_stratified(
    groups: Mapping[str, Labels],
    fixed: Mapping[str, str],
    *,
    seed: int,
    split_percent: Mapping[str, int] = SPLIT_PERCENT,
) -> dict[str, str]:
    """A split for every unit; those in `kept` stay where they are. The order of `units` makes no difference."""
    rng, best = np.random.default_rng(seed), None
    groups_per_label = Counter(label for labels in groups.values() for label in labels)
    unavoidable = sum(max(len(split_percent) - size, 0) for size in groups_per_label.values())
    for _ in range(MAX_ATTEMPTS):
        assigned = _assign_once(groups, fixed, rng, split_percent)
        missing = count_missing_classes(groups, assigned, split_percent)
        if best is None or missing < best[0]:
            best = missing, assigned
        if sum(missing) <= unavoidable:
            break
    return best[1]


def count_missing_classes(
    groups: Mapping[str, Labels], assigned: Mapping[str, str], split_percent: Iterable[str]
) -> tuple[int, ...]:
    """For each split, train first: how many classes have no unit in it."""
    classes = {label for labels in groups.values() for label in labels}
    present = {(label, assigned[unit]) for unit, labels in groups.items() for label in labels}
    return tuple(sum((label, split) not in present for label in classes) for split in split_percent)


def _assign_once(
    groups: Mapping[str, Labels], fixed: Mapping[str, str], rng: np.random.Generator, split_percent: Mapping[str, int]
) -> dict[str, str]:
    tally, assigned = Tally(split_percent), dict(fixed)
    for group, split in fixed.items():
        tally.add(groups[group], split)
    pending = _shuffle_within_strata({unit: groups[unit] for unit in groups if unit not in fixed}, rng)
    _assign_each_class(pending, groups, tally, assigned)
    for group in pending:
        if group not in assigned:
            assigned[group] = tally.most_deficient_split(groups[group])
            tally.add(groups[group], assigned[group])
    return assigned


def _shuffle_within_strata(groups: Mapping[str, Labels], rng: np.random.Generator) -> list[str]:
    """Strata one after another, those of several labels first, as they are hardest to place; shuffled within."""
    strata: dict[Labels, list[str]] = {}
    for group in sorted(groups):
        strata.setdefault(groups[group], []).append(group)
    order = sorted(strata, key=lambda labels: (-len(labels), labels))
    return [strata[labels][i] for labels in order for i in rng.permutation(len(strata[labels]))]


def _assign_each_class(
    pending: Sequence[str], groups: Mapping[str, Labels], tally: Tally, assigned: dict[str, str]
) -> None:
    """A unit of every class for every split, the rarest class first; of two units one for train, one for the next."""
    groups_per_label = Counter(label for labels in groups.values() for label in labels)
    for label in sorted(groups_per_label, key=lambda name: (groups_per_label[name], name)):
        for split in tally.split_percent:
            candidates = (unit for unit in reversed(pending) if unit not in assigned and label in groups[unit])
            # from the end: the last have the fewest labels, so that they disturb other classes least
            group = None if tally.counts[label, split] else next(candidates, None)
            if group is not None:
                assigned[group] = split
                tally.add(groups[group], split)


def validate_classes(table: pd.DataFrame, path: str | Path | None = None, *, only_test: bool = False) -> None:
    """Raise unless there are images (E002) of two classes (E003), two of each (E004), with names that differ (E006).

    `only_test`: nothing is to learn from the images, so that one of one class will do.
    """
    if table.empty:
        fix = "Give PNG, JPEG, TIFF, BMP or DICOM files in one folder a class, or a CSV"
        raise InputMissingError("0 images", fix, path=path, code="E002")
    labels = sorted(table["label"].unique())
    _reject_similar_names(labels, path)
    if only_test:
        return
    if len(labels) == 1:
        problem = f"one class only, {labels[0]!r}"
        raise DataError(problem, "Give images of two classes at least", path=path, code="E003")
    require_two_groups(table, "image", path)


def require_two_groups(table: pd.DataFrame, unit: str = "patient", path: str | Path | None = None) -> None:
    """Raise for classes that are no more than one patient, or image: none could be both trained and tested (E004).

    Where splits are given, a class that is in train may be as small as it likes.
    """
    train_labels = set(table.loc[table["split"] == "train", "label"]) if table["split"].notna().all() else set()
    counts = table.groupby("label").agg(images=("path", "size"), patients=("patient", "nunique"))
    too_small = counts[(counts["patients" if unit == "patient" else "images"] < 2) & ~counts.index.isin(train_labels)]
    if len(too_small):
        examples = format_names(
            f"{row.Index!r} ({_format_count(row.images, 'image')} of 1 patient)" for row in too_small.itertuples()
        )
        fix = f"One {unit} cannot be both trained and tested: give 2 at least, better 20, or leave it out"
        fix += " (--classes names those to keep)"
        raise DataError(f"too few {unit}s in class {examples}", fix, path=path, code=TOO_FEW_CODE)


def _reject_similar_names(labels: list[str], path: str | Path | None) -> None:
    """Refuse names that look alike: C1 and c1, a space more, an accent in one code point or two."""
    labels_by_folded_name: dict[str, list[str]] = {}
    for label in labels:
        folded = unicodedata.normalize("NFKC", label).casefold()
        labels_by_folded_name.setdefault("".join(unicodedata.normalize("NFKC", folded).split()), []).append(label)
    groups = [group for group in labels_by_folded_name.values() if len(group) > 1]
    if groups:
        examples = format_names(" and ".join(map(ascii, group)) for group in groups)
        problem = f"class names differ only in case, space or normalisation: {examples}"
        hint = format_names([f"--relabel '{groups[0][0]}={groups[0][1]}'"])
        fix = f"Give each class one name, written in one way, or say {hint}"
        raise DataError(problem, fix, path=path, code="E006")


def _format_count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
