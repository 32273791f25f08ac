"""Search for pairs of similar perceptual hashes without comparing all pairs; the pairs are those of all comparisons.

The 256 bits are divided into 11 blocks. If two hashes differ in at most 32 bits, then they differ in at most 2 bits of
some block: 3 bits in each of 11 blocks would be 33. So only pairs that are that similar in a block are compared
(multi-index hashing, Norouzi et al. 2012, arXiv:1307.2982). They are found by sorting: in two blocks that differ in at
most 2 bits, one bit of each can be flipped, or none, so that both become equal. Sorting n hashes takes n log n steps;
of the pairs of unrelated images, random bits leave 0.04 % to compare, and radiographs, which are more alike, 0.2 %.

Memory: 25 numbers of 64 bits for each hash, and MAX_PAIRS pairs.
"""

from collections.abc import Iterator

import numpy as np

MAX_DISTANCE_BITS = 32  # of 256; unrelated radiographs differ in 64 or more
N_BLOCKS = 11  # the fewest with which 2 bits a block suffice
MAX_PAIRS = 1 << 20  # compared at once
ROW_BITS = 32  # lower bits of a key: the row, and above it whether it is one of `others`
IS_OTHER = np.uint64(1 << (ROW_BITS - 1))
SEED = 0  # of the bits of each block: neighbouring frequencies of an image are correlated


def find_close_pairs(hashes: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """Return all pairs of hashes that differ in at most MAX_DISTANCE_BITS, sorted, shape (pairs, 2).

    Args:
        hashes: booleans, shape (n, 256).
        others: booleans, shape (m, 256); the second number of a pair is a row of these. Default: the hashes
            themselves, of which a pair has the smaller row first, and no row is its own pair.
    """
    words = _pack_words(hashes)
    n_others, other_words = (len(hashes), words) if others is None else (len(others), _pack_words(others))
    found = [np.empty(0, np.int64)]
    for block in np.array_split(np.random.default_rng(SEED).permutation(hashes.shape[1]), N_BLOCKS):
        keys = _list_keys(hashes[:, block])
        if others is not None:
            keys = np.concatenate([keys, _list_keys(others[:, block]) | IS_OTHER])
        keys.sort()
        close = [np.empty(0, np.int64)]
        for rows, other_rows in _join_keys(keys, is_same_set=others is None):
            is_close = _are_close(words, other_words, rows, other_rows)
            close.append(np.unique(rows[is_close] * n_others + other_rows[is_close]))
        found.append(np.unique(np.concatenate(close)))
    pairs = np.unique(np.concatenate(found))
    return np.column_stack(np.divmod(pairs, max(n_others, 1)))


def _pack_words(hashes: np.ndarray) -> np.ndarray:
    """Return the bits of the hashes as words of 64 bits, shape (words, n)."""
    return np.ascontiguousarray(np.packbits(hashes, axis=1).view(np.uint64).T)


def _are_close(words: np.ndarray, others: np.ndarray, rows: np.ndarray, other_rows: np.ndarray) -> np.ndarray:
    """Return whether the hashes of each pair of rows differ in at most MAX_DISTANCE_BITS."""
    counts = sum(_count_bits(one[rows] ^ other[other_rows]) for one, other in zip(words, others, strict=True))
    return np.asarray(counts) <= MAX_DISTANCE_BITS


def _count_bits(words: np.ndarray) -> np.ndarray:
    """Return the number of ones in each word, by sums of neighbouring bits, pairs and groups of four."""
    words = words - (words >> np.uint64(1) & np.uint64(0x5555555555555555))
    mask = np.uint64(0x3333333333333333)
    words = (words & mask) + (words >> np.uint64(2) & mask)
    words = words + (words >> np.uint64(4)) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return words * np.uint64(0x0101010101010101) >> np.uint64(56)


def _list_keys(bits: np.ndarray) -> np.ndarray:
    """Return a key for the bits of each row, and for those with each one flipped: the bits, then the row.

    Shape (n * (bits + 1),).
    """
    weights = np.uint64(1) << np.arange(bits.shape[1], dtype=np.uint64)
    values = np.zeros(len(bits), np.uint64)
    for column, weight in zip(bits.T, weights, strict=True):
        values |= column * weight
    rows = values << np.uint64(ROW_BITS) | np.arange(len(bits), dtype=np.uint64)
    return np.concatenate([rows, *(rows ^ weight << np.uint64(ROW_BITS) for weight in weights)])


def _join_keys(keys: np.ndarray, *, is_same_set: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the rows of all pairs of keys with the same bits, at most MAX_PAIRS at a time or those of one key.

    `keys`: sorted. `is_same_set`: whether any two keys are a pair, or only one with another for which IS_OTHER is set.
    """
    bits = keys >> np.uint64(ROW_BITS)
    is_equal = bits[1:] == bits[:-1]  # to the next one; most bits of unrelated images occur once
    is_shared = np.append(is_equal, False) | np.append(False, is_equal)
    keys, bits = keys[is_shared], bits[is_shared]
    if not len(keys):
        return
    stops = np.flatnonzero(np.append(bits[1:] != bits[:-1], True)) + 1  # of the groups of equal bits
    sizes = np.diff(stops, prepend=0)
    is_first = np.ones(len(keys), bool) if is_same_set else (keys & IS_OTHER) == 0
    n_before = np.concatenate([[0], np.cumsum(is_first)])
    ends = np.repeat(stops, sizes)
    starts = np.arange(1, len(keys) + 1)
    if not is_same_set:  # in a group, the keys of `others` follow the others
        starts = np.repeat(stops - sizes + n_before[stops] - n_before[stops - sizes], sizes)
    candidates = np.flatnonzero(is_first & (ends > starts))
    starts, counts = starts[candidates], (ends - starts)[candidates]
    edges = np.concatenate([[0], np.cumsum(counts)])
    first = 0
    while first < len(candidates):
        last = max(first + 1, int(np.searchsorted(edges, edges[first] + MAX_PAIRS, side="right")) - 1)
        some = slice(first, last)
        offsets = np.arange(edges[first], edges[last]) - np.repeat(edges[some], counts[some])
        pairs = np.repeat(candidates[some], counts[some]), np.repeat(starts[some], counts[some]) + offsets
        yield _get_rows(keys[pairs[0]]), _get_rows(keys[pairs[1]])
        first = last


def _get_rows(keys: np.ndarray) -> np.ndarray:
    return (keys & (IS_OTHER - np.uint64(1))).astype(np.int64)
