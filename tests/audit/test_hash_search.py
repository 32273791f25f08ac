"""Tests for fastcxr.audit.hash_search: it finds the pairs that a comparison of all pairs finds."""

import numpy as np
import pytest

from fastcxr.audit import hash_search
from fastcxr.audit.hash_search import MAX_DISTANCE_BITS, find_close_pairs
from fastcxr.audit.image_features import compute_perceptual_hashes, extract_features
from fastcxr.progress.base import Progress

BITS = 256


def compare_all(hashes, others):
    """Return all pairs within the distance, by comparing all."""
    distances = (hashes[:, None] != others[None]).sum(axis=2)
    return np.argwhere(distances <= MAX_DISTANCE_BITS)


def make_hashes(n, seed=0):
    """Return n random hashes, the second half at a distance of 0 to 40 bits from one of the first half."""
    rng = np.random.default_rng(seed)
    hashes = rng.random((n, BITS)) < 0.5
    for row in range(n // 2, n):
        hashes[row] = hashes[rng.integers(n // 2)]
        hashes[row, rng.permutation(BITS)[: rng.integers(0, 41)]] ^= True
    return hashes


@pytest.mark.parametrize("max_pairs", [100, 1 << 20])
def test_the_pairs_are_those_of_all_comparisons(max_pairs, monkeypatch):
    monkeypatch.setattr(hash_search, "MAX_PAIRS", max_pairs)
    hashes, others = make_hashes(300), np.concatenate([make_hashes(200)[:150], make_hashes(100, seed=1)])
    both = compare_all(hashes, hashes)
    pairs = find_close_pairs(hashes)
    assert len(pairs) > 100
    assert pairs.tolist() == both[both[:, 0] < both[:, 1]].tolist()
    assert find_close_pairs(hashes, others).tolist() == compare_all(hashes, others).tolist()


def test_every_arrangement_of_the_largest_distance_is_found():
    rng = np.random.default_rng(0)
    blocks = np.array_split(np.random.default_rng(hash_search.SEED).permutation(BITS), hash_search.N_BLOCKS)
    spread = np.concatenate([block[:3] for block in blocks])  # 33 bits, three in each block
    for n_bits, expected in ((MAX_DISTANCE_BITS, [[0, 0]]), (MAX_DISTANCE_BITS + 1, [])):
        one = rng.random((1, BITS)) < 0.5
        other = one.copy()
        other[0, spread[:n_bits]] ^= True
        assert find_close_pairs(one, other).tolist() == expected


def test_equal_hashes_are_pairs_and_no_row_is_its_own_pair():
    hashes = np.zeros((4, BITS), bool)
    assert find_close_pairs(hashes).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert find_close_pairs(hashes[:1]).tolist() == []
    assert find_close_pairs(hashes[:0], hashes).tolist() == [] == find_close_pairs(hashes, hashes[:0]).tolist()


def test_few_pairs_of_unrelated_hashes_are_compared(monkeypatch):
    n_compared, compare = [], hash_search._are_close

    def count(words, others, rows, other_rows):
        n_compared.append(len(rows))
        return compare(words, others, rows, other_rows)

    monkeypatch.setattr(hash_search, "_are_close", count)
    n = 4000
    assert len(find_close_pairs(np.random.default_rng(0).random((n, BITS)) < 0.5)) == 0
    assert 0 < sum(n_compared) < 0.002 * n * n / 2


@pytest.mark.parametrize("n", [250, pytest.param(None, marks=pytest.mark.slow)])
def test_real_radiographs_have_the_pairs_of_all_comparisons(n, real_data):
    files = sorted(map(str, (real_data / "ozturk" / "Covid-19").iterdir()))
    files += sorted(map(str, (real_data / "cohen" / "images").iterdir()))
    files += [] if n else sorted(map(str, (real_data / "coronahack" / "train").iterdir()))[:1500]
    features = extract_features(files[:n], Progress())
    hashes = compute_perceptual_hashes(features.thumbnails)
    flipped = compute_perceptual_hashes(features.thumbnails, lambda small: small[:, :, ::-1])
    signs, flipped_signs = (np.where(part, 1.0, -1.0).astype(np.float32) for part in (hashes, flipped))
    both = np.argwhere(signs @ signs.T >= BITS - 2 * MAX_DISTANCE_BITS)
    pairs = find_close_pairs(hashes)
    assert len(pairs) > 10 and pairs.tolist() == both[both[:, 0] < both[:, 1]].tolist()
    expected = np.argwhere(signs @ flipped_signs.T >= BITS - 2 * MAX_DISTANCE_BITS)
    assert find_close_pairs(hashes, flipped).tolist() == expected.tolist()
