"""The hash of weights: what changes them changes it, however they change."""

from __future__ import annotations

import numpy as np
import pytest

from crossmedia_fast import native

pytestmark = pytest.mark.skipif(native.module is None, reason=native.reason)

# around a word, a block of every vector's width, a thread's chunk
SIZES = [1, 7, 8, 9, 63, 64, 100, 128, 4096, 65536, 65544, 200_000]


def hash_of(data: np.ndarray, threads: int = 2) -> int:
    assert native.module is not None
    return int(native.module.hash_bytes(data.ctypes.data, data.nbytes, threads))


def random_bytes(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_every_byte_counts(size: int) -> None:
    data = random_bytes(size)
    known = {hash_of(data)}
    places = range(size) if size <= 4096 else [*range(0, size, size // 300), size - 1]
    for place in places:
        data[place] ^= 0x80  # a sign
        known.add(hash_of(data))
        data[place] ^= 0x80
    assert len(known) == 1 + len(places)


def test_bytes_of_zeros_count_too() -> None:
    assert len({hash_of(np.zeros(size, np.uint8)) for size in SIZES}) == len(SIZES)


@pytest.mark.parametrize("distance", [1, 2, 4, 8, 16, 32, 64, 128, 8192])
def test_words_that_trade_places_are_noticed(distance: int) -> None:
    words = random_bytes(400_000).view(np.uint64)
    for first in range(0, 300, 7):
        before = hash_of(words)
        words[[first, first + distance]] = words[[first + distance, first]]
        assert hash_of(words) != before


def test_changes_that_make_up_for_each_other_are_noticed() -> None:
    words = random_bytes(4096).view(np.uint64)
    before = hash_of(words)
    words[3] += np.uint64(5)
    words[40] -= np.uint64(5)
    assert hash_of(words) != before
    words[3] -= np.uint64(5)
    words[40] += np.uint64(5)
    assert hash_of(words) == before


@pytest.mark.parametrize("size", SIZES)
def test_is_the_same_for_any_number_of_threads(size: int) -> None:
    data = random_bytes(size)
    assert len({hash_of(data, threads) for threads in (1, 2, 3, 7)}) == 1


def hash_of_blocks(blocks: list[np.ndarray], threads: int = 2) -> int:
    assert native.module is not None
    pointers = [block.ctypes.data for block in blocks]
    return int(native.module.hash_blocks(pointers, [block.nbytes for block in blocks], threads))


@pytest.mark.parametrize("sizes", [[3, 70_000, 0, 200_000, 8], [65536] * 5, [16] * 100])
def test_blocks_are_told_apart(sizes: list[int]) -> None:
    blocks = [random_bytes(size + 1)[:size] for size in sizes]
    assert len({hash_of_blocks(blocks, threads) for threads in (1, 2, 3, 7)}) == 1
    known = {hash_of_blocks(blocks)}
    for place, block in enumerate(blocks):
        if block.nbytes:
            block[place % block.nbytes] ^= 1
            known.add(hash_of_blocks(blocks))
    assert len(known) == 1 + sum(size > 0 for size in sizes)
    if len(set(sizes)) == 1:  # which block it is counts
        assert hash_of_blocks(blocks[::-1]) not in known


def test_what_are_no_blocks_is_refused() -> None:
    assert native.module is not None
    hash_blocks = native.module.hash_blocks
    with pytest.raises(ValueError, match="as many"):
        hash_blocks([1, 2], [3], 1)
    with pytest.raises(ValueError, match="bytes"):
        hash_blocks([64], [-1], 1)
    with pytest.raises(ValueError, match="bytes"):
        hash_blocks([64, 64], [2**62, 2**62], 1)
    with pytest.raises(ValueError, match="data"):
        hash_blocks([0], [8], 1)
    assert isinstance(hash_blocks([], [], 1), int)
