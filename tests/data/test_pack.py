"""Index arithmetic against plain Python loops."""

import numpy as np
import pytest

from lm.data import pack


def test_permutation_is_a_bijection():
    for n in [*range(1, 70), 127, 128, 129, 1000, 4097, 2**16]:
        for seed, epoch in ((0, 0), (1, 0), (0, 1), (2**31 - 1, 10**9)):
            there = pack.permutation(np.arange(n), n, seed, epoch)
            assert there.dtype == np.int64
            assert np.array_equal(np.sort(there), np.arange(n)), (n, seed, epoch)


def test_permutation_of_any_element_in_any_order():
    n = 2**40 + 12345  # nothing of this size is ever made
    index = np.array([0, 1, n - 1, 10**12, 5])
    whole = pack.permutation(index, n, 7, np.array([3, 3, 3, 3, 4]))
    assert (whole >= 0).all()
    assert (whole < n).all()
    one_by_one = [
        pack.permutation(np.array([i]), n, 7, e)[0]
        for i, e in zip(index, [3, 3, 3, 3, 4], strict=True)
    ]
    assert whole.tolist() == one_by_one
    assert index.tolist() == [0, 1, n - 1, 10**12, 5]  # the argument is left alone


def test_permutation_in_plain_integers():
    """Holds numpy to the same network in Python integers, and pins the order of all runs."""

    def mixed(x):
        x &= 2**64 - 1
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    def permuted(x, n, seed, epoch):
        bits = (n - 1).bit_length()
        low_bits, key = bits // 2, mixed(epoch + mixed(seed))
        while True:
            high, low = x >> low_bits, x % 2**low_bits
            for turn in range(4):
                high ^= mixed(low + key + (2 * turn << 32)) % 2 ** (bits - low_bits)
                low ^= mixed(high + key + (2 * turn + 1 << 32)) % 2**low_bits
            x = high << low_bits | low
            if x < n:
                return x

    for n in (5, 1000, 10**11 + 3):
        index = np.arange(0, n, max(1, n // 20))
        expected = [permuted(int(i), n, 42, 9) for i in index]
        assert pack.permutation(index, n, 42, 9).tolist() == expected


@pytest.mark.parametrize("n", [16, 37, 1000])
def test_permutation_looks_random(n):
    """Chi-square of where each quarter of the elements lands, and of neighbours; 400 orders."""
    orders = np.array([pack.permutation(np.arange(n), n, seed, 1) for seed in range(400)])
    counts = np.zeros((4, 4))
    np.add.at(counts, (np.broadcast_to(np.arange(n) * 4 // n, orders.shape), orders * 4 // n), 1)
    share = np.bincount(np.arange(n) * 4 // n) / n
    expected = np.outer(share, share) * orders.size
    assert ((counts - expected) ** 2 / expected).sum() < 28  # p = 0.001 of 9 degrees of freedom
    steps = (np.diff(orders, axis=1) % n).ravel()
    frequency = np.bincount(steps, minlength=n)[1:]  # differences are 1 to n - 1, equally likely
    mean = frequency.mean()
    assert ((frequency - mean) ** 2 / mean).sum() < (n - 2) + 5 * np.sqrt(2 * (n - 2))
    assert len(np.unique(orders, axis=0)) == 400


def naive_documents(starts, begin, length, origin):
    """Segments and positions of one window, token by token."""
    segments, positions = [], []
    for place in range(begin, begin + length):
        document = max(i for i, start in enumerate(starts) if start <= place)
        first = max(i for i, start in enumerate(starts) if start <= begin)
        segments.append(document - first + 1)
        positions.append(place - max(starts[document], origin))
    return segments, positions


def test_segments_and_positions():
    random = np.random.default_rng(0)
    for _ in range(60):
        size, length = random.integers(20, 120), random.integers(1, 20)
        starts = np.unique([0, *random.integers(0, size, random.integers(0, 30))])
        begin_B = random.integers(0, size - length + 1, 6)
        for origin_B in (begin_B, begin_B - random.integers(0, begin_B + 1)):
            segments_BT, positions_BT = pack.documents(starts, begin_B, length, origin_B)
            assert segments_BT.dtype == positions_BT.dtype == np.int32
            for row in range(6):
                expected = naive_documents(starts, begin_B[row], length, origin_B[row])
                assert (segments_BT[row].tolist(), positions_BT[row].tolist()) == expected


def test_read_past_the_end():
    stream = np.arange(10, 20, dtype=np.uint16)
    batch = pack.read(stream, np.array([0, 4, 8, 12]), 4)
    assert {name: array.dtype for name, array in batch.items()} == {
        "tokens": np.int32,
        "targets": np.int32,
        "weights": np.float32,
    }
    assert batch["tokens"][:2].tolist() == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert batch["targets"][:2].tolist() == [[11, 12, 13, 14], [15, 16, 17, 18]]
    assert batch["weights"].tolist() == [[1] * 4, [1] * 4, [1, 0, 0, 0], [0] * 4]
    assert batch["targets"][2, 0] == 19
