"""Units (patients or images) with their labels come in; the split of each, dealt in fair shares, goes out.

Whole units are dealt, so none stands in two splits. Within a stratum (units with the same labels) they are shuffled,
and each goes where most is wanting. First every split gets a unit of every class that has enough of them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

SHARES = {"train": 70, "test": 15, "valid": 15}  # of a hundred patients; where two want the same, the first is served
ATTEMPTS = 20  # shuffles to try where patients with several labels make it hard to serve every class

Labels = tuple[str, ...]


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
