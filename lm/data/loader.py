"""Batches as a pure function of (seed, step): any of their rows on any host, at once.

A batch is a dictionary of arrays (B, T): tokens, targets int32; weights float32, 0 for padding;
with data.separate_documents also segments int32, 0 for padding, and positions int32.
"""

import collections
import concurrent.futures
import functools
import hashlib

import jax
import numpy as np

from lm.data import pack
from lm.errors import require

ORDERED = 4096  # windows whose order is computed at once, as a batch is too small for numpy


class Windows:
    """What training and validation batches share.

    In the contiguous order the stream is cut into as many lanes as a batch has rows, and row r of
    batch after batch is lane r. Positions then count on from one window to the next: position 0 is
    where a memory must be cleared. In the shuffled order each window begins at 0.
    """

    def __init__(self, store, config):
        self.store = store
        self.batch_size, self.length = config.batch_size, config.sequence_length
        self.contiguous = config.order == "contiguous"
        self.separate = config.separate_documents

    def read(self, window_B, lane_B):
        """window_B: numbers of the windows; lane_B: of those in which their lanes begin."""
        start_B, origin_B = window_B * self.length, lane_B * self.length
        batch = pack.read(self.store.tokens, start_B, self.length)
        if self.separate:
            found = pack.documents(self.store.starts, start_B, self.length, origin_B)
            real = batch["weights"].astype(np.int32)
            batch["segments"], batch["positions"] = (array * real for array in found)
        return batch


class Batches(Windows):
    """Training batches without end; every epoch reads each window once, in an order of its own.

    Left out are the last tokens, too few for a window; in the contiguous order also the windows
    that would make lanes unequal, and there a lane begins again where it ended.
    """

    def __init__(self, store, config, seed):
        super().__init__(store, config)
        self.seed = seed
        self.num_windows = (store.num_tokens - 1) // self.length
        lanes = self.batch_size if self.contiguous else 1
        longest = (store.num_tokens - 1) // lanes
        remedy = f"make it {longest} or less, or name" if longest > 0 else "name"
        require(
            self.num_windows >= lanes,
            f"the training part has {store.num_tokens} tokens; {lanes} x data.sequence_length="
            f"{self.length} needs {lanes * self.length + 1}: {remedy} more text.",
        )
        self._order = functools.lru_cache(4)(self._order_of)

    def rows(self, step, rows):
        """The rows of the batch of a step whose numbers are `rows`, integers in any order."""
        row_B = np.asarray(rows, np.int64)
        if self.contiguous:
            lane_length = self.num_windows // self.batch_size
            return self.read(row_B * lane_length + step % lane_length, row_B * lane_length)
        example_B = int(step) * self.batch_size + row_B
        first = example_B.min() // ORDERED
        order = [self._order(block) for block in range(first, example_B.max() // ORDERED + 1)]
        window_B = np.concatenate(order)[example_B - first * ORDERED]
        return self.read(window_B, window_B)

    def _order_of(self, block):
        example = block * ORDERED + np.arange(ORDERED)
        epoch, place = np.divmod(example, self.num_windows)
        return pack.permutation(place, self.num_windows, self.seed, epoch)

    def fingerprint(self, step):
        """Hexadecimal hash of all that the batch of a step holds."""
        digest = hashlib.blake2b(digest_size=8)
        for name, array_BT in sorted(self.rows(step, np.arange(self.batch_size)).items()):
            digest.update(name.encode() + np.ascontiguousarray(array_BT).tobytes())
        return digest.hexdigest()


class ValidationBatches(Windows):
    """A whole part in len() batches: each token but the first is a target of weight 1 once."""

    def __init__(self, store, config):
        super().__init__(store, config)
        require(
            store.num_tokens >= 2,
            f"the validation part has {store.num_tokens} tokens and needs 2 or more; "
            "name more text, or a data.validation_path.",
        )
        self.num_windows = -(-(store.num_tokens - 1) // self.length)

    def __len__(self):
        return -(-self.num_windows // self.batch_size)

    def rows(self, number, rows):
        """The rows of batch `number` whose numbers are `rows`; past the end their weights are 0."""
        row_B = np.asarray(rows, np.int64)
        if self.contiguous:
            return self.read(row_B * len(self) + number, row_B * len(self))
        window_B = number * self.batch_size + row_B
        return self.read(window_B, window_B)


def place(batches, step, sharding, accumulation=None):
    """The batch of a step as global jax.Arrays: (A, B / A, T), or (B, T) without accumulation.

    sharding: of arrays of that rank. A process reads the rows that its devices hold, no others.
    """
    size, length = batches.batch_size, batches.length
    shape = (accumulation, size // accumulation, length) if accumulation else (size, length)
    here = np.zeros(shape[:-1], bool)
    for index in sharding.addressable_devices_indices_map(shape).values():
        here[index[:-1]] = True
    rows = np.flatnonzero(here)

    def placed(array):
        whole = array
        if len(rows) < size:
            whole = np.empty((size, length), array.dtype)
            whole[rows] = array
        whole = whole.reshape(shape)
        return jax.make_array_from_callback(shape, sharding, lambda index: whole[index])

    return {name: placed(array) for name, array in batches.rows(step, rows).items()}


def prefetch(make, steps, ahead):
    """Yields make(step) for each of the steps; a thread works up to `ahead` of them in advance.

    An error in make(step) is raised where its result is due. The thread ends with the iterator,
    when that is exhausted, closed or collected.
    """
    executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="lm-prefetch")
    waiting = collections.deque()
    try:
        for step in steps:
            waiting.append(executor.submit(make, step))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
