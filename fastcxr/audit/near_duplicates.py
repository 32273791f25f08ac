"""Search for near-duplicates: the same image saved again, resized, brightened, padded, flipped or inverted."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from fastcxr.audit.findings import Finding, format_count
from fastcxr.audit.image_features import ImageFeatures, compute_perceptual_hashes
from fastcxr.audit.manifest_checks import MAX_SHOWN_GROUPS
from fastcxr.data.findings import is_multi_label

MAX_HASH_DISTANCE_BITS = 32  # of 256; unrelated radiographs differ in 70 or more
MIN_CORRELATION = 0.93  # of two thumbnails; unrelated ones reach 0.924
BLOCK_ROWS = 2048  # images compared with as many others at once
PAIRS = 512  # candidate pairs with pixels compared at once
TRANSFORMS = (np.asarray, lambda small: small[:, :, ::-1], lambda small: 255 - small)  # unchanged, flipped, inverted


def find_near_duplicates(features: ImageFeatures) -> list[tuple[int, int]]:
    """Return pairs of rows that show the same image, also flipped or inverted; the first row is the smaller.

    Images are compared without uniform borders, which padding adds, and with them, because noise or brightness can
    make a border uneven.
    """
    near_duplicates: set[tuple[int, int]] = set()
    for thumbnails in (features.trimmed_thumbnails, features.thumbnails):
        for pairs in _find_similar_pairs(thumbnails):
            near_duplicates.update(zip(*pairs.T.tolist(), strict=True))
    return sorted(near_duplicates)


def match_near_duplicates(features: ImageFeatures, references: ImageFeatures) -> dict[int, int]:
    """Return, for each row that shows the same image as a reference, the row of one such reference.

    Images are compared as in find_near_duplicates.
    """
    references_by_row: dict[int, int] = {}
    for thumbnails, others in (
        (features.trimmed_thumbnails, references.trimmed_thumbnails),
        (features.thumbnails, references.thumbnails),
    ):
        for pairs in _find_similar_pairs(thumbnails, others):
            references_by_row |= dict(pairs.tolist())
    return references_by_row


def _find_similar_pairs(thumbnails: np.ndarray, others: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield pairs of a row and a row of `others`; without `others`, pairs of two rows, the smaller first."""
    references = thumbnails if others is None else others
    hashes = compute_perceptual_hashes(thumbnails)
    for transform in TRANSFORMS:
        reference_hashes = compute_perceptual_hashes(references, transform)
        for pairs in _find_candidates(hashes, reference_hashes, is_same_set=others is None):
            first, second = _standardize(thumbnails[pairs[:, 0]]), _standardize(transform(references[pairs[:, 1]]))
            yield pairs[np.einsum("ij,ij->i", first, second) >= MIN_CORRELATION]


def _find_candidates(hashes: np.ndarray, others: np.ndarray, *, is_same_set: bool) -> Iterator[np.ndarray]:
    """Yield pairs of rows with similar hashes, shape (n, 2); of two rows of the same set, the smaller first."""
    min_product = hashes.shape[1] - 2 * MAX_HASH_DISTANCE_BITS  # equal bits minus different bits
    for start in range(0, len(hashes), BLOCK_ROWS):
        block = hashes[start : start + BLOCK_ROWS].astype(np.float32)
        for second in range(start if is_same_set else 0, len(others), BLOCK_ROWS):
            product = block @ others[second : second + BLOCK_ROWS].T.astype(np.float32)
            pairs = np.argwhere(product >= min_product) + (start, second)
            pairs = pairs[pairs[:, 0] < pairs[:, 1]] if is_same_set else pairs
            yield from (pairs[first : first + PAIRS] for first in range(0, len(pairs), PAIRS))


def _standardize(thumbnails: np.ndarray) -> np.ndarray:
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


def check_near_duplicates(manifest: pd.DataFrame, features: ImageFeatures) -> Finding:
    """Check whether near-duplicates are in several splits or classes; those of one patient may be similar."""
    make_finding = partial(Finding, check="likeness", title="Near-duplicates", chance_level=0.0)
    pairs = find_near_duplicates(features)
    split, label, patient = (manifest[name].to_numpy() for name in ("split", "label", "patient"))
    conflicting = [(a, b) for a, b in pairs if split[a] != split[b] or label[a] != label[b]]
    cross_patient = [(a, b) for a, b in pairs if patient[a] != patient[b]]
    reported = conflicting or cross_patient
    make_finding = partial(make_finding, value=float(len(reported)), groups=tuple(reported[:MAX_SHOWN_GROUPS]))
    if conflicting:
        units = "labels" if is_multi_label(manifest) else "classes"
        message = f"Near-duplicates in several splits or {units}: {format_count(len(conflicting), 'pair')}."
        fix = "Check the images below; remove one image of each pair, or assign both to the same patient."
        return make_finding(verdict="FAIL", message=message, fix=fix)
    if cross_patient:
        message = f"Near-duplicates of different patients in one split: {format_count(len(cross_patient), 'pair')}."
        fix = "If both images show the same patient, give them the same identifier."
        return make_finding(verdict="WARN", message=message, fix=fix)
    return make_finding(verdict="PASS", message="No near-duplicates across patients.")
