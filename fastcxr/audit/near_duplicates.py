"""Which pictures are nearly the same: saved anew, resized, brightened, padded, mirrored or inverted."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from fastcxr.audit.findings import Finding, count_images
from fastcxr.audit.image_features import Looks, hash_looks
from fastcxr.audit.manifest_checks import SHOWN

NEAR = 32  # of 256 bits that may differ; unrelated radiographs differ in 70 and more
ALIKE = 0.93  # correlation of two pictures at 64 px; unrelated ones reach .924
ROWS = 2048  # of pictures that are compared with as many others at once
PAIRS = 512  # of candidate pairs whose pixels are compared at once
TURNS = (np.asarray, lambda small: small[:, :, ::-1], lambda small: 255 - small)


def find_alike(looks: Looks) -> list[tuple[int, int]]:
    """Pairs of rows that show one picture, mirrored and inverted ones among them; the first row is the smaller.

    Without even borders, which padding adds; and with them, as noise or brightness can make a border uneven.
    """
    return sorted(_find_pairs(looks.trimmed) | _find_pairs(looks.small))


def _find_pairs(small: np.ndarray) -> set[tuple[int, int]]:
    hashes, found = hash_looks(small), set()
    for turn in TURNS:
        for pairs in _find_near(hashes, hash_looks(small, turn)):
            one, other = (_standardise(pictures) for pictures in (small[pairs[:, 0]], turn(small[pairs[:, 1]])))
            alike = pairs[np.einsum("ij,ij->i", one, other) >= ALIKE]
            found.update(zip(*alike.T.tolist(), strict=True))
    return found


def _find_near(hashes: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of rows, the first one the smaller, whose hashes differ in few bits; (some, 2)."""
    fewest = hashes.shape[1] - 2 * NEAR  # of equal less different bits
    for start in range(0, len(hashes), ROWS):
        block = hashes[start : start + ROWS].astype(np.float32)
        for second in range(start, len(hashes), ROWS):
            product = block @ others[second : second + ROWS].T.astype(np.float32)
            pairs = np.argwhere(product >= fewest) + (start, second)
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            yield from (pairs[first : first + PAIRS] for first in range(0, len(pairs), PAIRS))


def _standardise(small: np.ndarray) -> np.ndarray:
    rows = small.reshape(len(small), -1).astype(np.float32)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def check_likeness(manifest: pd.DataFrame, looks: Looks) -> Finding:
    """Does one picture stand in two splits, or under two labels, in whatever form?

    Pictures of one patient may look alike; only splits and labels that part them are a fault.
    """
    about = {"check": "likeness", "title": "One picture twice, in another form"}
    pairs = find_alike(looks)
    split, label, patient = (manifest[name].to_numpy() for name in ("split", "label", "patient"))
    torn = [(a, b) for a, b in pairs if split[a] != split[b] or label[a] != label[b]]
    if torn:
        words = (
            f"{count_images(len(torn), 'pair')} of pictures that are nearly the same stand in two splits or classes."
        )
        remedy = "Look at them below; leave one of each pair out, or name both after one patient."
        groups = tuple(torn[:SHOWN])
        return Finding(
            **about, verdict="FAIL", words=words, remedy=remedy, figure=float(len(torn)), null=0.0, groups=groups
        )
    strangers = [(a, b) for a, b in pairs if patient[a] != patient[b]]
    if strangers:
        words = (
            f"{count_images(len(strangers), 'pair')} of two patients' pictures are nearly the same, within one split."
        )
        remedy = "Perhaps one patient under two names: give both one."
        return Finding(
            **about, verdict="WARN", words=words, remedy=remedy, figure=float(len(strangers)), null=0.0,
            groups=tuple(strangers[:SHOWN]),
        )  # fmt: skip
    return Finding(**about, verdict="PASS", words="No picture of one stands beside another's.", figure=0.0, null=0.0)
