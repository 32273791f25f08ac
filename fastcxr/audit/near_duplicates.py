"""Which pictures are nearly the same: saved anew, resized, brightened, padded, mirrored or inverted."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from fastcxr.audit.findings import Finding, format_count
from fastcxr.audit.image_features import ImageFeatures, compute_perceptual_hashes
from fastcxr.audit.manifest_checks import MAX_SHOWN_GROUPS

MAX_HASH_DISTANCE_BITS = 32  # of 256 bits that may differ; unrelated radiographs differ in 70 and more
MIN_CORRELATION = 0.93  # correlation of two pictures at 64 px; unrelated ones reach .924
BLOCK_ROWS = 2048  # of pictures that are compared with as many others at once
PAIRS = 512  # of candidate pairs whose pixels are compared at once
TURNS = (np.asarray, lambda small: small[:, :, ::-1], lambda small: 255 - small)


def find_near_duplicates(features: ImageFeatures) -> list[tuple[int, int]]:
    """Pairs of rows that show one picture, mirrored and inverted ones among them; the first row is the smaller.

    Without even borders, which padding adds; and with them, as noise or brightness can make a border uneven.
    """
    return sorted(_find_similar_pairs(features.trimmed_thumbnails) | _find_similar_pairs(features.thumbnails))


def _find_similar_pairs(thumbnails: np.ndarray) -> set[tuple[int, int]]:
    hashes, near_duplicates = compute_perceptual_hashes(thumbnails), set()
    for turn in TURNS:
        for pairs in _find_near(hashes, compute_perceptual_hashes(thumbnails, turn)):
            one, other = (
                _standardize(pictures) for pictures in (thumbnails[pairs[:, 0]], turn(thumbnails[pairs[:, 1]]))
            )
            alike = pairs[np.einsum("ij,ij->i", one, other) >= MIN_CORRELATION]
            near_duplicates.update(zip(*alike.T.tolist(), strict=True))
    return near_duplicates


def _find_near(hashes: np.ndarray, others: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of rows, the first one the smaller, whose hashes differ in few bits; (some, 2)."""
    fewest = hashes.shape[1] - 2 * MAX_HASH_DISTANCE_BITS  # of equal less different bits
    for start in range(0, len(hashes), BLOCK_ROWS):
        block = hashes[start : start + BLOCK_ROWS].astype(np.float32)
        for second in range(start, len(hashes), BLOCK_ROWS):
            product = block @ others[second : second + BLOCK_ROWS].T.astype(np.float32)
            pairs = np.argwhere(product >= fewest) + (start, second)
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            yield from (pairs[first : first + PAIRS] for first in range(0, len(pairs), PAIRS))


def _standardize(thumbnails: np.ndarray) -> np.ndarray:
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def check_near_duplicates(manifest: pd.DataFrame, features: ImageFeatures) -> Finding:
    """Does one picture stand in two splits, or under two labels, in whatever form?

    Pictures of one patient may look alike; only splits and labels that part them are a fault.
    """
    common = {"check": "likeness", "title": "One picture twice, in another form"}
    pairs = find_near_duplicates(features)
    split, label, patient = (manifest[name].to_numpy() for name in ("split", "label", "patient"))
    conflicting = [(a, b) for a, b in pairs if split[a] != split[b] or label[a] != label[b]]
    if conflicting:
        message = (
            f"{format_count(len(conflicting), 'pair')} of pictures that are nearly the same stand in two splits or "
            "classes."
        )
        fix = "Look at them below; leave one of each pair out, or name both after one patient."
        groups = tuple(conflicting[:MAX_SHOWN_GROUPS])
        return Finding(
            **common,
            verdict="FAIL",
            message=message,
            fix=fix,
            value=float(len(conflicting)),
            chance_level=0.0,
            groups=groups,
        )
    cross_patient = [(a, b) for a, b in pairs if patient[a] != patient[b]]
    if cross_patient:
        message = (
            f"{format_count(len(cross_patient), 'pair')} of two patients' pictures are nearly the same, within one "
            "split."
        )
        fix = "Perhaps one patient under two names: give both one."
        return Finding(
            **common, verdict="WARN", message=message, fix=fix, value=float(len(cross_patient)), chance_level=0.0,
            groups=tuple(cross_patient[:MAX_SHOWN_GROUPS]),
        )  # fmt: skip
    return Finding(
        **common, verdict="PASS", message="No picture of one stands beside another's.", value=0.0, chance_level=0.0
    )
