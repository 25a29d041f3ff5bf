"""From row numbers to tokens by arithmetic alone: which window of the stream a row is.

A window is `length` + 1 tokens at a stride of `length`: the tokens are all but its last, the
targets all but its first. B rows, T positions.
"""

import numpy as np

TURNS = 4


def mixed(x):
    """A bijection of uint64 arrays that looks random: the finalizer of SplitMix64. Steele, Lea and
    Flood 2014, "Fast splittable pseudorandom number generators", with the constants of Stafford's
    variant 13.
    """
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


def permutation(index, n, seed, epoch):
    """Where the permutation of range(n) that seed and epoch choose takes each of `index`; int64.

    index: array of integers in [0, n); epoch: one of the same shape, or an integer. A Feistel
    network on the bits of n - 1, walked until the result is below n again (the cycle-walking cipher
    of Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): any element at once, and
    integers only, so equal on every machine.
    """
    bits = (n - 1).bit_length()
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << bits - low_bits) - 1
    x = np.array(index, np.uint64)
    key = np.broadcast_to(np.asarray(epoch, np.uint64), x.shape)
    key = mixed(key + mixed(np.full(1, seed, np.uint64)))

    def network(x, key):
        high, low = x >> low_bits, x & low_mask
        for turn in range(TURNS):
            # Apart by more than either half can be: each turn is a function of its own.
            high = high ^ (mixed(low + (key + (2 * turn << 32))) & high_mask)
            low = low ^ (mixed(high + (key + (2 * turn + 1 << 32))) & low_mask)
        return high << low_bits | low

    x = network(x, key)
    while (outside := x >= n).any():
        x[outside] = network(x[outside], key[outside])
    return x.astype(np.int64)


def read(stream, start_B, length):
    """The windows that begin at start_B, (B, T): tokens and targets, int32, and weights, float32.
    The weight is 1; 0 where the stream has ended, and tokens and targets are arbitrary.
    """
    place_BT = start_B[:, None] + np.arange(length + 1)
    window_BT = np.take(stream, place_BT, mode="clip")
    return {
        "tokens": window_BT[:, :-1].astype(np.int32),
        "targets": window_BT[:, 1:].astype(np.int32),
        "weights": (place_BT[:, 1:] < len(stream)).astype(np.float32),
    }


def documents(document_starts, start_B, length, origin_B):
    """Segments, from 1 in each window, and positions of its tokens; both int32 (B, T). Positions
    count from where the document begins, or from origin_B <= start_B if that is later.
    """
    first_B = np.searchsorted(document_starts, start_B, "right") - 1
    last_B = np.searchsorted(document_starts, start_B + length, "left") - 1
    # The documents that begin inside a window, after its first token: row, number, place.
    count_B = last_B - first_B
    row = np.repeat(np.arange(len(start_B)), count_B)
    number = np.arange(len(row)) + np.repeat(last_B + 1 - np.cumsum(count_B), count_B)
    place = document_starts[number] - start_B[row]
    begins_BT = np.zeros((len(start_B), length), np.int32)
    begins_BT[:, 0] = begins_BT[row, place] = 1
    origin_BT = np.empty((len(start_B), length), np.int32)
    origin_BT[:] = (np.maximum(document_starts[first_B], origin_B) - start_B)[:, None]
    origin_BT[row, place] = place
    origin_BT = np.maximum.accumulate(origin_BT, axis=1)
    positions_BT = np.arange(length, dtype=np.int32) - origin_BT
    return np.cumsum(begins_BT, axis=1, dtype=np.int32), positions_BT
