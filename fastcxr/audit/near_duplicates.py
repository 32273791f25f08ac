"""Search for near-duplicates: the same image saved again, resized, brightened, padded, flipped or inverted."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd

from fastcxr.audit.findings import Finding, format_count
from fastcxr.audit.hash_search import find_close_pairs
from fastcxr.audit.image_features import ImageFeatures, compute_perceptual_hashes
from fastcxr.audit.manifest_checks import MAX_SHOWN_GROUPS
from fastcxr.data.findings import is_multi_label

MIN_CORRELATION = 0.93  # of two thumbnails; unrelated ones reach 0.924
PAIRS = 256  # candidate pairs with pixels compared at once
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
    rows = _find_varied_rows(thumbnails)
    reference_rows = rows if others is None else _find_varied_rows(others)
    hashes = compute_perceptual_hashes(thumbnails)[rows]
    for transform in TRANSFORMS:
        is_self_join = others is None and transform is np.asarray
        reference_hashes = None if is_self_join else compute_perceptual_hashes(references, transform)[reference_rows]
        first, second = find_close_pairs(hashes, reference_hashes).T
        pairs = np.column_stack([rows[first], reference_rows[second]])
        pairs = pairs if others is not None else pairs[pairs[:, 0] < pairs[:, 1]]
        yield from _select_correlated(thumbnails, references, transform, pairs)


def _select_correlated(
    thumbnails: np.ndarray, references: np.ndarray, transform: Callable[[np.ndarray], np.ndarray], pairs: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the pairs of a thumbnail and a transformed reference with a correlation of at least MIN_CORRELATION."""
    for start in range(0, len(pairs), PAIRS):
        some = pairs[start : start + PAIRS]
        first, second = _standardize(thumbnails[some[:, 0]]), _standardize(transform(references[some[:, 1]]))
        yield some[np.einsum("ij,ij->i", first, second) >= MIN_CORRELATION]


def _find_varied_rows(thumbnails: np.ndarray) -> np.ndarray:
    """Return the rows of the thumbnails with several gray values: a uniform one has no correlation with any other."""
    return np.flatnonzero(np.array([small.min() < small.max() for small in thumbnails], bool))


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
