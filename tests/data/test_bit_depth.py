"""Tests for bit_depth.py: the bit depth of files that state none is determined once for each source, and saved."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from image_caches import SIZE
from sample_images import make_chunk, make_png, make_reference, save_image

from fastcxr.data.bit_depth import (
    COLUMN,
    BitDepths,
    decide_depths,
    find_depths,
    open_dataset_images,
    read_depths,
    summarize_depths,
    write_depths,
)
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.cache.index import decode, file_signature
from fastcxr.data.cache.quota import CannotStoreError
from fastcxr.data.imaging import sniff
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.data.imaging.sniff import Remarks
from fastcxr.data.manifest import read_manifest
from fastcxr.data.manifest_file import read_written_manifest, write_manifest
from fastcxr.data.pack import pack_dataset
from fastcxr.errors import DataError

TWELVE = make_reference().astype(np.uint16) * 16


@pytest.fixture
def manifest(tmp_path, cache) -> pd.DataFrame:
    """Three images of a 12-bit detector, one of them underexposed, and one 8-bit image of the same source."""
    deep = {"bright": TWELVE, "other": TWELVE[::-1], "dark": TWELVE // 4}
    for name, values in deep.items():
        (tmp_path / f"{name}.png").write_bytes(make_png(values, 0))
    save_image(make_reference(seed=4), tmp_path / "shallow.png")
    names = [*deep, "shallow"]
    rows = {"source": "a", "path": [f"{name}.png" for name in names], "file": [f"{tmp_path}/{n}.png" for n in names]}
    return pd.DataFrame(rows | {"label": ["x", "y"] * 2, "patient": names, "split": "train"})


def test_two_exposures_of_one_detector_keep_their_ratio(manifest):
    _, images = open_dataset_images(manifest, SIZE)
    bright, _, dark, _ = images.read(range(4)).astype(float)
    assert np.allclose(dark, bright / 4, atol=1)


def test_the_manifest_contains_the_depth_of_images_that_state_none(manifest, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    table, _ = open_dataset_images(manifest, SIZE)
    assert read_depths(table) == [12, 12, 12, None]
    assert "bit depth of images whose files state none: a 12 bits" in caplog.text


def test_8_bit_images_need_no_column_and_are_decoded_once(manifest, decoded):
    table, images = open_dataset_images(manifest[3:], SIZE)
    assert COLUMN not in table and len(decoded) == 1
    assert np.array_equal(images.read([0])[0], fit_square(make_reference(seed=4), SIZE))


def test_images_of_a_manifest_with_depths_are_decoded_once(manifest, decoded, old):
    table, _ = open_dataset_images(manifest, SIZE)
    count = len(decoded)
    again, _ = open_dataset_images(table, SIZE)
    assert len(decoded) == count == 4 + 3
    pd.testing.assert_frame_equal(again, table)


def test_cached_images_lead_to_the_same_depths(manifest, decoded, old):
    first, images = open_dataset_images(manifest, SIZE)
    count = len(decoded)
    second, again = open_dataset_images(manifest, SIZE)
    assert len(decoded) == count
    pd.testing.assert_frame_equal(first, second)
    assert np.array_equal(images.read(range(4)), again.read(range(4)))


def test_the_depths_are_the_same_without_a_cache(manifest, monkeypatch):
    expected = open_dataset_images(manifest, SIZE)[1].read(range(4))
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0")
    monkeypatch.setattr("fastcxr.data.cache.images.temporary_cache", _fail)
    table, images = open_dataset_images(manifest, SIZE)
    assert images.mapped is None and read_depths(table) == [12, 12, 12, None]
    assert np.array_equal(images.read(range(4)), expected)


def _fail():
    raise CannotStoreError("no disk")


def test_signature_and_content_hash_depend_on_the_depth(manifest, old):
    file = manifest["file"][0]
    assert len({file_signature(file), file_signature(file, 12), file_signature(file, 16)}) == 3
    found = [decode(file, SIZE, lambda _: False, depth) for depth in (None, 12, 16)]
    assert len({one.content_hash for one in found}) == len({one.signature for one in found}) == 3


def test_a_depth_in_the_column_is_used(manifest):
    table, images = open_dataset_images(manifest.assign(**{COLUMN: ["14", "14", "14", ""]}), SIZE)
    assert read_depths(table) == [14, 14, 14, None]
    assert np.array_equal(images.read([0])[0], fit_square(read_image(manifest["file"][0], 14), SIZE))


@pytest.mark.parametrize("cell", ["deep", "7", "17", "12.5"])
def test_an_invalid_depth_in_the_column_is_refused_with_a_fix(manifest, cell):
    with pytest.raises(DataError, match="'other.png' is '.*', expected a bit depth. Set a whole number from 8 to 16"):
        read_depths(manifest.assign(**{COLUMN: ["12", cell, "", None]}))


def test_the_depth_of_a_source_holds_the_peaks_of_95_percent_of_its_images():
    sources = pd.Series(["a"] * 40 + ["b"] * 2)
    peaks = [3000] * 38 + [65535] * 2 + [900, 9000]
    assert decide_depths(sources, peaks) == BitDepths({"a": 12, "b": 14}, 12)
    assert decide_depths(sources[-2:], [900, 65535]).sources == {"b": 16}


def test_a_written_manifest_contains_the_depths(manifest, tmp_path):
    table = write_depths(
        manifest.assign(patient_origin="image", split_origin="patient"), [0, 1], BitDepths({"a": 12}, 12)
    )
    write_manifest(table, tmp_path / "manifest.csv")
    assert read_depths(read_written_manifest(tmp_path / "manifest.csv")) == [12, 12, None, None]


def test_a_model_saves_the_most_frequent_depth_of_each_source_and_of_all(manifest):
    table = manifest.assign(source=["a", "b", "b", "c"], **{COLUMN: ["14", "12", "12", ""]})
    assert summarize_depths(table) == BitDepths({"a": 14, "b": 12}, 12)
    assert summarize_depths(manifest) == BitDepths()


def test_images_are_read_with_the_depth_of_the_model(manifest):
    known = BitDepths({"a": 14}, 14)
    table, images = open_dataset_images(manifest, SIZE, known=known)
    assert read_depths(table) == [14, 14, 14, None]
    alone = open_dataset_images(manifest[2:3].reset_index(drop=True), SIZE, known=known)[1]
    assert np.array_equal(images.read([2]), alone.read([0]))
    assert find_depths(manifest, known) == [14] * 4
    assert find_depths(manifest[["file", "path"]], known) == [14] * 4


def test_an_image_of_an_unknown_source_causes_a_warning_if_the_known_sources_differ(manifest, caplog):
    open_dataset_images(manifest, SIZE, known=BitDepths({"b": 12, "c": 14}, 12))
    text = "FCX-W213 3 images: the file states no bit depth; read with 12 bits, the most frequent depth of "
    assert text + "the model's sources, which differ (b 12 bits, c 14 bits) (first: 'bright.png')" in caplog.text
    caplog.clear()
    open_dataset_images(manifest, SIZE, known=BitDepths({"a": 12, "c": 14}, 12))
    open_dataset_images(manifest, SIZE, known=BitDepths({"b": 12, "c": 12}, 12))
    assert "W213" not in caplog.text


def test_a_model_of_8_bit_images_has_no_depth_and_deeper_images_cause_a_warning(manifest, caplog):
    table, images = open_dataset_images(manifest, SIZE, known=BitDepths())
    images.log_warnings()
    assert COLUMN not in table
    rule = "the smallest of 8, 10, 12, 14 and 16 that holds 98 % of its pixels"
    for images, bits, name in (("2 images", 12, "bright"), ("1 image", 10, "dark")):
        line = f"FCX-W211 {images}: the file states no bit depth; read with {bits} bits, {rule} (first: '{name}.png')"
        assert line in caplog.text


def test_values_above_the_depth_of_the_source_cause_a_warning(manifest):
    Path(manifest["file"][0]).write_bytes(make_png(make_reference().astype(np.uint16) * 257, 0))
    _, images = open_dataset_images(manifest.assign(**{COLUMN: "12"}), SIZE)
    assert "W212" in images.remarks[0].warnings and "W212" not in images.remarks[1].warnings


def test_packed_images_have_the_depth_of_their_source(manifest, tmp_path, caplog):
    pytest.importorskip("h5py", reason="packed datasets need an extra: pip install 'fastcxr[hdf5]'")
    whole = manifest.assign(patient_origin="image", split_origin="patient")
    expected = open_dataset_images(whole, SIZE)[1].read(range(4))
    packed = read_manifest(pack_dataset(whole, tmp_path / "packed.h5"))
    assert read_depths(packed) == [12, 12, 12, None]
    assert np.array_equal(open_dataset_images(packed, SIZE)[1].read(range(4)), expected)
    assert summarize_depths(packed) == BitDepths({"a": 12}, 12)
    open_dataset_images(packed, SIZE, known=BitDepths({"a": 12}, 12))
    assert "packed with a different bit depth" not in caplog.text
    open_dataset_images(packed, SIZE, known=BitDepths({"b": 14}, 14))
    assert "3 images packed with a different bit depth than the model uses (b 14 bits)" in caplog.text


def test_an_sbit_chunk_states_the_depth(manifest):
    Path(manifest["file"][2]).write_bytes(make_png(TWELVE // 4, 0, make_chunk(b"sBIT", bytes([12]))))
    table, images = open_dataset_images(manifest, SIZE)
    assert read_depths(table) == [12, 12, None, None]
    bright, _, dark, _ = images.read(range(4)).astype(float)
    assert np.allclose(dark, bright / 4, atol=1)


@pytest.fixture
def binary(tmp_path, cache, old, monkeypatch) -> list[str]:
    """Three images with only black and white pixels, which cause warnings, and one gray image."""
    monkeypatch.setattr(sniff, "_warned_codes", set())
    files = [save_image(make_reference(seed=n) > 120, tmp_path / f"{n}.png") for n in range(3)]
    return [*map(str, files), str(save_image(make_reference(), tmp_path / "gray.png"))]


def test_the_cache_reproduces_the_warnings_of_the_decoder(binary, decoded, caplog):
    text = "FCX-W202 3 images: only black and white pixels; the gray levels are lost (first: '0.png')"
    for _ in range(2):
        caplog.clear()
        open_image_cache(binary, SIZE).log_warnings()
        assert [record.getMessage() for record in caplog.records] == [text]
    assert len(decoded) == 4


def test_an_exact_duplicate_has_the_same_warning(binary, tmp_path):
    open_image_cache(binary, SIZE)
    copy = tmp_path / "copy.png"
    copy.write_bytes((tmp_path / "0.png").read_bytes())
    assert "W202" in open_image_cache([str(copy)], SIZE).remarks[0].warnings


def test_a_logged_warning_is_not_logged_again(binary, caplog):
    images = open_image_cache(binary, SIZE)
    images.log_warnings()
    images.log_warnings(again=False)
    read_image(binary[0])
    assert len(caplog.records) == 1
    assert images.remarks == {row: Remarks(images.remarks[0].warnings) for row in range(3)}


def test_a_cache_folder_of_another_format_is_not_read(binary, decoded, monkeypatch):
    open_image_cache(binary, SIZE)
    monkeypatch.setattr("fastcxr.data.cache.quota.IMAGE_CACHE_FORMAT", 2)
    open_image_cache(binary, SIZE)
    assert len(decoded) == 8
