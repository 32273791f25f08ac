"""Two-dimensional map of the features of images, and how often an image and its nearest neighbour are of one group.

Neighbours are images of other patients: the images of one patient are alike, and have the same source.
"""

import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fastcxr.data.demographics import find_demographic_column, has_value
from fastcxr.data.findings import NO_FINDING, split_labels

log = logging.getLogger("fastcxr")
FEATURE_MAP_FILE = "feature_map.csv"
TEXT_COLUMNS = ("source", "path", "patient", "split", "label", "view", "nearest_source", "nearest_path", "method")
COORDINATES = ("x", "y")
MAX_MAP_IMAGES = 2000
MIN_MAP_IMAGES = 10
MIN_UMAP_IMAGES = 60  # with fewer, the neighbours of an image are a quarter of all images
N_UMAP_NEIGHBORS = 15
SEED = 0
EMPTY_MAP = pd.DataFrame(columns=[*TEXT_COLUMNS, *COORDINATES])
NONE_PRESENT = "no finding present"  # an image without any present finding, whose data does not state "No Finding"


def select_evenly(n_rows: int, n_selected: int) -> np.ndarray:
    """Return the numbers of at most `n_selected` evenly spaced rows."""
    return np.unique(np.linspace(0, n_rows - 1, min(n_rows, n_selected)).astype(int))


def make_feature_map(images: pd.DataFrame, features: np.ndarray) -> pd.DataFrame:
    """Return the table of feature_map.csv, one row per image; no rows for fewer than MIN_MAP_IMAGES images.

    The column `method` states how the coordinates were computed. An image has no nearest image if all others are of its
    patient.

    Args:
        images: n rows of a manifest.
        features: standardized features, shape (n, d).
    """
    if len(images) < MIN_MAP_IMAGES:
        log.info("no feature map: got %d images, expected at least %d", len(images), MIN_MAP_IMAGES)
        return EMPTY_MAP
    rows = images.reset_index(drop=True)
    nearest = find_nearest(features, rows["patient"].to_numpy())
    nearest_keys = rows[["source", "path"]].reindex(nearest).fillna("").reset_index(drop=True)
    coordinates, method = compute_coordinates(features)
    view_column = find_demographic_column(rows.columns, "view")
    views = rows[view_column].astype(str).str.strip() if view_column else pd.Series("", index=rows.index)
    return rows[["source", "path", "patient", "split", "label"]].assign(
        view=views.where(views.map(has_value).astype(bool), ""),
        nearest_source=nearest_keys["source"],
        nearest_path=nearest_keys["path"],
        method=method,
        **dict(zip(COORDINATES, coordinates.round(4).T, strict=True)),
    )


def find_nearest(features: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Return the row of the nearest image of another patient for each row, shape (n,); -1 if there is none.

    `features`: shape (n, d); the distance is Euclidean.
    """
    lengths = np.square(features).sum(axis=1)
    distances = lengths[:, None] + lengths - 2 * features @ features.T
    distances[patients[:, None] == patients] = np.inf
    nearest = distances.argmin(axis=1)
    return np.where(np.isfinite(distances[np.arange(len(features)), nearest]), nearest, -1)


def compute_coordinates(features: np.ndarray) -> tuple[np.ndarray, str]:
    """Return coordinates, shape (n, 2), and their method: UMAP if umap-learn is installed, otherwise PCA."""
    if len(features) < MIN_UMAP_IMAGES:
        return compute_principal_components(features)
    try:  # an optional extra, which takes seconds to import
        from umap import UMAP  # pyright: ignore[reportMissingImports]
    except ImportError:
        return compute_principal_components(features)
    coordinates = UMAP(n_neighbors=N_UMAP_NEIGHBORS, random_state=SEED, n_jobs=1).fit_transform(features)
    return np.asarray(coordinates, dtype=float), "UMAP"


def compute_principal_components(features: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the first two principal components, shape (n, 2), and "PCA" with their share of the variance.

    The coordinate with the largest absolute value is positive, so that the signs do not depend on the library.
    """
    from sklearn.decomposition import PCA  # scikit-learn takes a second to import, which reading a map does not need

    pca = PCA(2, random_state=SEED)
    coordinates = pca.fit_transform(features)
    largest = coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]]
    percent = 100 * pca.explained_variance_ratio_.sum()
    return np.where(largest < 0, -coordinates, coordinates), f"PCA, {percent:.0f} % of the variance"


@dataclass(frozen=True)
class NearestShare:
    """Share of images that are of the same group as their nearest image.

    chance: the expected share if a random image of another patient takes the place of the nearest one.
    n_images: images that have a nearest image.
    """

    share: float
    chance: float
    n_images: int


def compute_nearest_share(table: pd.DataFrame, groups: pd.Series) -> NearestShare | None:
    """Return the share of validation images of the same group as their nearest image; None if none has a nearest image.

    Training images are left out: the network was fitted to their labels, and the share would be too high.

    Args:
        table: the table of feature_map.csv.
        groups: group of each row.
    """
    row_by_key = {key: row for row, key in enumerate(zip(table["source"], table["path"], strict=True))}
    keys = zip(table["nearest_source"], table["nearest_path"], strict=True)
    nearest = np.array([row_by_key.get(key, -1) for key in keys], dtype=int)
    rows = np.flatnonzero((table["split"] == "valid").to_numpy() & (nearest >= 0))
    if not len(rows):
        return None
    of_group, of_patient, of_both = (
        groups.groupby(keys).transform("size").to_numpy()
        for keys in ([groups], [table["patient"]], [groups, table["patient"]])
    )
    chances = (of_group - of_both)[rows] / (len(table) - of_patient)[rows]
    names = groups.to_numpy()
    return NearestShare(float((names[rows] == names[nearest[rows]]).mean()), float(chances.mean()), len(rows))


def name_main_findings(labels: pd.Series) -> pd.Series:
    """Return one finding for each image: of several the one that most of these images have.

    `labels`: cells of the column `label` of images with several findings each.
    """
    lists = [split_labels(label) for label in labels]
    counts = Counter(name for names in lists for name in names)
    counts[NO_FINDING] = 0  # only for an image without any other label
    main = [max(names, key=lambda name: (counts[name], name)) if names else NONE_PRESENT for names in lists]
    return pd.Series(main, index=labels.index, dtype=str)
