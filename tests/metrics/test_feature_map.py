"""Map of the features: coordinates with fixed signs, nearest images of other patients, and shares of the same group."""

import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from fastcxr.metrics import feature_map as module
from fastcxr.metrics.feature_map import (
    MAX_MAP_IMAGES,
    NONE_PRESENT,
    compute_coordinates,
    compute_nearest_share,
    find_nearest,
    make_feature_map,
    name_main_findings,
    select_evenly,
)


@pytest.fixture(autouse=True)
def without_umap(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)


def make_images(n, **columns):
    numbers = [str(k) for k in range(n)]
    base = {"source": "a", "path": numbers, "patient": numbers, "split": "valid", "label": "x"}
    return pd.DataFrame(base | columns)


def draw_features(n=80, d=12, seed=0):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, d)) * np.linspace(3, 1, d)


def make_line(positions, **columns):
    """Return the map of images on a line; the first feature is their position."""
    positions = np.array(positions, dtype=float)
    features = np.stack([positions, np.zeros(len(positions))], axis=1)
    return make_feature_map(make_images(len(positions), **columns), features)


def test_coordinates_are_the_first_two_principal_components():
    features = draw_features()
    coordinates, method = compute_coordinates(features)
    centred = features - features.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(coordinates), np.abs(u[:, :2] * s[:2]), atol=1e-6)
    share = (s[:2] ** 2).sum() / (s**2).sum()
    assert method == f"PCA, {100 * share:.0f} % of the variance"


def test_signs_of_principal_components_do_not_depend_on_the_library(monkeypatch):
    import sklearn.decomposition

    class FlippedPCA(sklearn.decomposition.PCA):
        def fit_transform(self, features):
            return -super().fit_transform(features)

    coordinates, _ = compute_coordinates(draw_features())
    monkeypatch.setattr(sklearn.decomposition, "PCA", FlippedPCA)
    np.testing.assert_array_equal(compute_coordinates(draw_features())[0], coordinates)
    largest = coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]]
    assert (largest > 0).all()


def test_umap_is_used_with_a_fixed_seed_where_it_is_installed(monkeypatch):
    umap, calls = ModuleType("umap"), []

    class UMAP:
        def __init__(self, **options):
            calls.append(options)

        def fit_transform(self, features):
            return features[:, :2].astype(np.float32)

    umap.UMAP = UMAP
    monkeypatch.setitem(sys.modules, "umap", umap)
    coordinates, method = compute_coordinates(draw_features())
    np.testing.assert_allclose(coordinates, draw_features()[:, :2], rtol=1e-6)
    assert method == "UMAP"
    assert calls == [{"n_neighbors": 15, "random_state": 0, "n_jobs": 1}]
    assert compute_coordinates(draw_features(59))[1].startswith("PCA"), "too few images for UMAP"


@pytest.mark.slow
@pytest.mark.needs("umap")
def test_umap_is_deterministic_and_separates_two_groups(monkeypatch):
    monkeypatch.delitem(sys.modules, "umap")
    features = draw_features(120) + 30 * (np.arange(120) % 2)[:, None]
    coordinates, method = compute_coordinates(features)
    assert method == "UMAP"
    np.testing.assert_array_equal(compute_coordinates(features)[0], coordinates)
    first, second = coordinates[::2], coordinates[1::2]
    assert np.linalg.norm(first.mean(axis=0) - second.mean(axis=0)) > 2 * first.std()


def test_the_nearest_image_is_one_of_another_patient():
    features = np.array([[0.0], [0.1], [1.0], [5.0], [5.2]])
    assert find_nearest(features, np.array(["p", "p", "q", "r", "s"])).tolist() == [2, 2, 1, 4, 3]
    assert find_nearest(features, np.array(["p"] * 5)).tolist() == [-1] * 5


def test_the_map_has_the_keys_of_the_nearest_image_and_its_view():
    table = make_line(np.arange(12) ** 2, ViewPosition=["PA"] * 11 + ["unknown"])
    assert table["nearest_path"].tolist() == ["1", "0", *map(str, range(1, 11))]
    assert (table["nearest_source"] == "a").all()
    assert table["view"].tolist() == ["PA"] * 11 + [""]
    assert table["x"].is_monotonic_increasing
    assert not table[["x", "y"]].isna().any(axis=None)


def test_few_images_have_no_map(caplog):
    with caplog.at_level("INFO", logger="fastcxr"):
        assert make_line(range(9)).empty
    assert "no feature map: got 9 images, expected at least 10" in caplog.text


def test_the_share_of_the_nearest_group_and_its_chance_level():
    # pairs of positions; the nearest image of each is its neighbour in the pair
    positions = np.repeat(np.arange(6) * 10, 2) + [0, 1] * 6
    source = pd.Series(list("aaaabbbbabab"))
    table = make_line(positions, source=source)
    nearest = compute_nearest_share(table, source)
    assert nearest.share == pytest.approx(8 / 12)
    assert nearest.chance == pytest.approx(5 / 11), "of the 11 other images, 5 have the same source"
    assert nearest.n_images == 12


def test_only_validation_images_count_and_the_images_of_a_patient_are_no_neighbours():
    positions = np.repeat(np.arange(6) * 10, 2) + [0, 1] * 6
    patient = [str(k) for k in range(12)]
    patient[0] = patient[2] = "both"
    split = ["valid"] * 2 + ["train"] * 10
    table = make_line(positions, patient=patient, split=split)
    nearest = compute_nearest_share(table, pd.Series(list("xyxxxyyyyyyy")))
    assert (nearest.share, nearest.n_images) == (0, 2)
    # image 0: of 10 images of other patients 2 are x; image 1: of 11 images 7 are y
    assert nearest.chance == pytest.approx((2 / 10 + 7 / 11) / 2)
    assert compute_nearest_share(table.assign(split="train"), table["label"]) is None


def test_an_image_has_the_finding_that_most_images_have():
    labels = pd.Series(["Edema|Mass", "Mass", "Edema", "Mass|No Finding", "No Finding", "No Finding", ""])
    expected = ["Mass", "Mass", "Edema", "Mass", "No Finding", "No Finding", NONE_PRESENT]
    assert name_main_findings(labels).tolist() == expected


def test_rows_are_selected_evenly():
    assert select_evenly(5, 10).tolist() == [0, 1, 2, 3, 4]
    rows = select_evenly(10_000, MAX_MAP_IMAGES)
    assert len(rows) == MAX_MAP_IMAGES
    assert (rows[0], rows[-1]) == (0, 9_999)
    assert set(np.diff(rows)) <= {5, 6}


def test_the_table_has_the_columns_that_the_report_reads():
    assert {*make_line(range(10)).columns} == {*module.TEXT_COLUMNS, *module.COORDINATES}
