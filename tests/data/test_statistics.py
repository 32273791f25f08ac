"""Tests of image statistics, compared with NumPy."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fastcxr.data.imaging.read import read_image
from fastcxr.data.statistics import N_BINS, compute_histogram, measure_images
from fastcxr.errors import ImageError


def write_images(folder, images, **columns):
    """Write images, and return a manifest of one patient per image."""
    rows = []
    for number, (label, image) in enumerate(images):
        file = folder / f"{number}.png"
        Image.fromarray(image).save(file)
        rows.append({"source": "s", "path": file.name, "label": label, "patient": f"p{number}", "file": str(file)})
    return pd.DataFrame(rows).assign(**({"split": "train"} | columns))


def draw(seed, shape=(70, 80)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def numpy_histogram(image):
    return np.histogram(image, bins=64, range=(0, 256))[0] / image.size


def test_a_histogram_equals_that_of_numpy_and_sums_to_one():
    for image in (draw(0), np.array([[0, 3, 4, 255]], np.uint8), np.full((2, 2), 255, np.uint8)):
        assert np.array_equal(compute_histogram(image), numpy_histogram(image))
        assert compute_histogram(image).sum() == pytest.approx(1)


def test_the_histogram_of_a_class_is_the_mean_of_its_images_with_quantiles(tmp_path):
    images = [("a", draw(k, (64 + k, 70))) for k in range(5)] + [("b", draw(9))]
    histograms, _ = measure_images(write_images(tmp_path, images))
    assert list(histograms.columns) == ["label", "bin", "mean", "low", "high", "images"]
    fractions = np.array([numpy_histogram(image) for label, image in images if label == "a"])
    found = histograms[histograms["label"] == "a"]
    assert found["bin"].tolist() == list(range(N_BINS)) and set(found["images"]) == {5}
    assert np.allclose(found["mean"], fractions.mean(axis=0))
    assert np.allclose(found["low"], np.quantile(fractions, 0.1, axis=0))
    assert np.allclose(found["high"], np.quantile(fractions, 0.9, axis=0))
    assert np.allclose(histograms.loc[histograms["label"] == "b", ["mean", "low"]].T, numpy_histogram(images[-1][1]))


def test_at_most_max_images_of_the_training_split_are_measured(tmp_path):
    dark, light = draw(1) // 4, draw(2) // 4 + 190
    images = [("a", dark)] * 6 + [("a", light)] * 3 + [("b", dark)] * 2
    manifest = write_images(tmp_path, images, split=["train"] * 6 + ["test"] * 3 + ["train"] * 2)
    histograms, files = measure_images(manifest, max_images=4)
    assert histograms.groupby("label")["images"].first().to_dict() == {"a": 4, "b": 2}
    assert np.allclose(histograms.loc[histograms["label"] == "a", "mean"], numpy_histogram(dark))
    assert files["images"].sum() == 6


def test_files_are_counted_by_content_and_not_by_name(tmp_path):
    manifest = write_images(tmp_path, [("a", draw(k)) for k in range(3)] + [("b", draw(7, (90, 65)))])
    Image.fromarray(draw(0)).convert("RGB").save(tmp_path / "0.png", "JPEG")
    _, files = measure_images(manifest)
    rows = [("a", "JPEG", 80, 70, 1), ("a", "PNG", 80, 70, 2), ("b", "PNG", 65, 90, 1)]
    assert list(files.itertuples(index=False, name=None)) == rows


def test_an_unreadable_image_is_named_in_the_error(tmp_path):
    manifest = write_images(tmp_path, [("a", draw(0)), ("a", draw(1))])
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(ImageError, match="1.png"):
        measure_images(manifest)


def test_an_empty_manifest_gives_empty_tables():
    empty = pd.DataFrame(columns=["source", "path", "label", "patient", "split", "file"])
    histograms, files = measure_images(empty)
    assert len(histograms) == len(files) == 0 and "mean" in histograms and "kind" in files


def test_a_file_is_measured_again_only_after_a_change(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr("fastcxr.data.statistics.read_image", lambda path, _: read.append(path) or read_image(path))
    manifest = write_images(tmp_path, [("a", draw(11)), ("a", draw(12))])
    first, _ = measure_images(manifest)
    assert measure_images(manifest)[0].equals(first) and len(read) == 2
    Image.fromarray(draw(13, (66, 90))).save(manifest["file"][1])
    changed, files = measure_images(manifest)
    assert len(read) == 3 and not changed.equals(first)
    assert sorted(files["width"]) == [80, 90]
