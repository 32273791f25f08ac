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
from fastcxr.io.tables import name_some

SHARES = {"train": 70, "test": 15, "valid": 15}  # of a hundred patients; where two want the same, the first is served
ATTEMPTS = 20  # shuffles to try where patients with several labels make it hard to serve every class
Labels = tuple[str, ...]
TOO_FEW = "E004"  # a class that cannot be split


@dataclass
class Table:
    """What lies on the table: how many units of each class and of each stratum, in all and in each split."""

    shares: Mapping[str, int]
    dealt: Counter = field(default_factory=Counter)

    def put(self, labels: Labels, split: str) -> None:
        for heap in (labels, *labels):
            self.dealt.update((heap, (heap, split)))

    def find_wanting(self, labels: Labels) -> str:
        """The split that lacks most of this stratum and of these classes once one more is dealt; in whole numbers."""
        heaps, whole = (labels, *labels), sum(self.shares.values())

        def lack(split: str) -> int:
            return sum(self.shares[split] * (self.dealt[h] + 1) - whole * self.dealt[h, split] for h in heaps)

        return max(self.shares, key=lack)


def deal(
    units: Mapping[str, Labels], kept: Mapping[str, str], *, seed: int, shares: Mapping[str, int] = SHARES
) -> dict[str, str]:
    """A split for every unit; those in `kept` stay where they are. The order of `units` makes no difference."""
    random, best = np.random.default_rng(seed), None
    sizes = Counter(label for labels in units.values() for label in labels)
    unavoidable = sum(max(len(shares) - size, 0) for size in sizes.values())
    for _ in range(ATTEMPTS):
        places = _deal_once(units, kept, random, shares)
        lacking = count_lacking(units, places, shares)
        if best is None or lacking < best[0]:
            best = lacking, places
        if sum(lacking) <= unavoidable:
            break
    return best[1]


def count_lacking(units: Mapping[str, Labels], places: Mapping[str, str], shares: Iterable[str]) -> tuple[int, ...]:
    """For each split, train first: how many classes have no unit in it."""
    classes = {label for labels in units.values() for label in labels}
    there = {(label, places[unit]) for unit, labels in units.items() for label in labels}
    return tuple(sum((label, split) not in there for label in classes) for split in shares)


def _deal_once(
    units: Mapping[str, Labels], kept: Mapping[str, str], random: np.random.Generator, shares: Mapping[str, int]
) -> dict[str, str]:
    table, places = Table(shares), dict(kept)
    for unit, split in kept.items():
        table.put(units[unit], split)
    waiting = _shuffle({unit: units[unit] for unit in units if unit not in kept}, random)
    _serve_classes(waiting, units, table, places)
    for unit in waiting:
        if unit not in places:
            places[unit] = table.find_wanting(units[unit])
            table.put(units[unit], places[unit])
    return places


def _shuffle(units: Mapping[str, Labels], random: np.random.Generator) -> list[str]:
    """Strata one after another, those of several labels first, as they are hardest to place; shuffled within."""
    strata: dict[Labels, list[str]] = {}
    for unit in sorted(units):
        strata.setdefault(units[unit], []).append(unit)
    order = sorted(strata, key=lambda labels: (-len(labels), labels))
    return [strata[labels][i] for labels in order for i in random.permutation(len(strata[labels]))]


def _serve_classes(waiting: Sequence[str], units: Mapping[str, Labels], table: Table, places: dict[str, str]) -> None:
    """A unit of every class for every split, the rarest class first; of two units one for train, one for the next."""
    sizes = Counter(label for labels in units.values() for label in labels)
    for label in sorted(sizes, key=lambda name: (sizes[name], name)):
        for split in table.shares:
            free = (unit for unit in reversed(waiting) if unit not in places and label in units[unit])
            # from the end: the last have the fewest labels, so that they disturb other classes least
            unit = None if table.dealt[label, split] else next(free, None)
            if unit is not None:
                places[unit] = split
                table.put(units[unit], split)


def check_classes(table: pd.DataFrame, path: str | Path | None = None, *, only_test: bool = False) -> None:
    """Raise unless there are images (E002) of two classes (E003), two of each (E004), with names that differ (E006).

    `only_test`: nothing is to learn from the images, so that one of one class will do.
    """
    if table.empty:
        fix = "Give PNG, JPEG, TIFF, BMP or DICOM files in one folder a class, or a CSV"
        raise InputMissingError("0 images", fix, path=path, code="E002")
    labels = sorted(table["label"].unique())
    _refuse_twins(labels, path)
    if only_test:
        return
    if len(labels) == 1:
        what = f"one class only, {labels[0]!r}"
        raise DataError(what, "Give images of two classes at least", path=path, code="E003")
    refuse_lonely(table, "image", path)


def refuse_lonely(table: pd.DataFrame, unit: str = "patient", path: str | Path | None = None) -> None:
    """Raise for classes that are no more than one patient, or image: none could be both trained and tested (E004).

    Where splits are given, a class that is in train may be as small as it likes.
    """
    given = set(table.loc[table["split"] == "train", "label"]) if table["split"].notna().all() else set()
    sizes = table.groupby("label").agg(images=("path", "size"), patients=("patient", "nunique"))
    lonely = sizes[(sizes["patients" if unit == "patient" else "images"] < 2) & ~sizes.index.isin(given)]
    if len(lonely):
        named = name_some(f"{row.Index!r} ({_count(row.images, 'image')} of 1 patient)" for row in lonely.itertuples())
        fix = f"One {unit} cannot be both trained and tested: give 2 at least, better 20, or leave it out"
        fix += " (--classes names those to keep)"
        raise DataError(f"too few {unit}s in class {named}", fix, path=path, code=TOO_FEW)


def _refuse_twins(labels: list[str], path: str | Path | None) -> None:
    """Refuse names that look alike: C1 and c1, a space more, an accent in one code point or two."""
    twins: dict[str, list[str]] = {}
    for label in labels:
        folded = unicodedata.normalize("NFKC", label).casefold()
        twins.setdefault("".join(unicodedata.normalize("NFKC", folded).split()), []).append(label)
    groups = [group for group in twins.values() if len(group) > 1]
    if groups:
        named = name_some(" and ".join(map(ascii, group)) for group in groups)
        what = f"class names differ only in case, space or normalisation: {named}"
        hint = name_some([f"--relabel '{groups[0][0]}={groups[0][1]}'"])
        fix = f"Give each class one name, written in one way, or say {hint}"
        raise DataError(what, fix, path=path, code="E006")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
