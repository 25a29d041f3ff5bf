"""Batches as a pure function of (seed, step): any of their rows on any host, at once.

A batch is a dictionary of arrays (B, T): tokens, targets int32; weights float32, 0 for padding;
with data.separate_documents also segments int32, 0 for padding, and positions int32. Those of an
objective other than the causal one are what its examples hold, see lm.objectives.builder.
"""

import collections
import concurrent.futures
import functools

import jax
import numpy as np

from lm.data import mixture, pack
from lm.errors import require

ORDERED = mixture.BLOCK  # windows whose order is computed at once: a batch is too small for numpy
VALIDATION_SEED = 1 << 32  # no training seed


class Windows:
    """What training and validation batches share: windows of one source after those of another.

    In the contiguous order the stream is cut into as many lanes as a batch has rows, and row r of
    batch after batch is lane r. Positions then count on from one window to the next: position 0 is
    where a memory must be cleared. In the shuffled order each window begins at 0.
    """

    def __init__(self, store, config, examples, seed):
        self.stores, self.weights, self.seed = store.stores, store.weights, seed
        self.batch_size, self.examples = config.batch_size, examples
        self.length = examples.raw_length if examples else config.sequence_length
        self.contiguous = config.order == "contiguous"
        self.separate = config.separate_documents
        told = "data.order='contiguous' is for one source; set data.order='shuffled'."
        require(not self.contiguous or len(self.stores) == 1, told)

    def count(self, num_windows_of):
        """Sets how many windows each source has, and all before it."""
        self.counts, examples = [num_windows_of(store) for store in self.stores], self.examples
        self.firsts = np.cumsum([0, *self.counts])[:-1]
        self.num_windows = sum(self.counts)
        told = "objective.next_sentence=True takes text from elsewhere too"
        told += ", and the text is no longer than data.sequence_length; name more text."
        require(self.num_windows > 1 or not (examples and examples.several_windows), told)

    def read(self, window_B, lane_B, example_B=None, key_B=None):
        """window_B: numbers of the windows; lane_B: of those in which their lanes begin. example_B,
        key_B: the number of each example, and that which with the seed fixes its noise.
        """
        if self.examples:
            return self._made(window_B, example_B, key_B)
        if len(self.stores) == 1:
            return self._causal(self.stores[0], window_B, lane_B)
        batch, source_B = {}, np.searchsorted(self.firsts, window_B, "right") - 1
        for source in np.unique(source_B):
            rows, first = source_B == source, self.firsts[source]
            ours = self.stores[source], window_B[rows] - first, lane_B[rows] - first
            for name, array in self._causal(*ours).items():
                batch.setdefault(name, np.empty((len(rows), self.length), array.dtype))
                batch[name][rows] = array
        return batch

    def _causal(self, store, window_B, lane_B):
        start_B, origin_B = window_B * self.length, lane_B * self.length
        batch = pack.read(store.tokens, start_B, self.length)
        if self.separate:
            found = pack.documents(store.starts, start_B, self.length, origin_B)
            real = batch["weights"].astype(np.int32)
            batch["segments"], batch["positions"] = (array * real for array in found)
        return batch

    def _made(self, window_B, example_B, key_B):
        rows, makers = [], self.examples.choose(example_B, self.seed)
        for make, window, key in zip(makers, window_B, key_B, strict=True):
            at = min(window, self.num_windows - 1)
            rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, key], np.uint64)))
            row = make(self.window(at), rng, functools.partial(self._another, at))
            ended = window > at  # an example that counts for nothing
            rows.append({k: np.zeros_like(x) for k, x in row.items()} if ended else row)
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def window(self, number):
        """The tokens of a window: `length` of them, or fewer at the end of a source's part."""
        source = np.searchsorted(self.firsts, number, "right") - 1
        start = (number - self.firsts[source]) * self.length
        return np.asarray(self.stores[source].tokens[start : start + self.length], np.int32)

    def _another(self, window, rng):
        """The tokens of a window drawn from all others."""
        other = int(rng.random() * (self.num_windows - 1))
        return self.window(other + (other >= window))


class Batches(Windows):
    """Training batches without end; every epoch reads each window once, in an order of its own.

    Left out are the last tokens, too few for a window; in the contiguous order also the windows
    that would make lanes unequal, and there a lane begins again where it ended. Of several sources
    each has its epochs. examples: what lm.objectives.builder makes; None: causal.
    """

    def __init__(self, store, config, seed, examples=None):
        super().__init__(store, config, examples, seed)
        lanes, after = (self.batch_size if self.contiguous else 1), (0 if examples else 1)
        for each in self.stores:
            longest = (each.num_tokens - after) // lanes
            remedy = f"make it {longest} or less, or name" if longest > 0 else "name"
            length = f"data.sequence_length={config.sequence_length}"
            if examples:
                length, remedy = f"{self.length} tokens of an example", "name"
            needs = f"{lanes} x {length} needs {lanes * self.length + after}"
            told = f"the training part has {each.num_tokens} tokens; {needs}: {remedy} more text."
            require((each.num_tokens - after) // self.length >= lanes, told)
        self._order = functools.lru_cache(4)(self._order_of)
        self.count(lambda store: (store.num_tokens - after) // self.length)

    def rows(self, step, rows):
        """The rows of the batch of a step whose numbers are `rows`, integers in any order."""
        row_B = np.asarray(rows, np.int64)
        if self.contiguous:
            lane_length = self.num_windows // self.batch_size
            return self.read(row_B * lane_length + step % lane_length, row_B * lane_length)
        example_B = int(step) * self.batch_size + row_B
        first = example_B.min() // ORDERED
        order = [self._order(block) for block in range(first, example_B.max() // ORDERED + 1)]
        window_B, key_B = np.concatenate(order, axis=1)[:, example_B - first * ORDERED]
        return self.read(window_B, window_B, example_B, key_B)

    def _order_of(self, block):
        """(windows, keys of their noise) of the examples of a block, int64 (2, ORDERED)."""
        example = block * ORDERED + np.arange(ORDERED)
        source, index = np.zeros_like(example), example
        if len(self.stores) > 1:
            source, index = mixture.assign(example, self.weights, self.seed + (1 << 48))
        window, epoch = np.empty((2, ORDERED), np.int64)
        for number, (first, count) in enumerate(zip(self.firsts, self.counts, strict=True)):
            of = source == number
            epoch[of], place = np.divmod(index[of], count)
            seed = self.seed + (number << 32)
            window[of] = first + pack.permutation(place, count, seed, epoch[of])
        copies = self.examples.copies if self.examples else 0
        return np.stack([window, window * copies + epoch % copies if copies else example])


class ValidationBatches(Windows):
    """A whole part in len() batches, the same each time: one source after the other. Causal: each
    token but the first of a source is a target of weight 1 once. Else, examples of all windows of 2
    tokens or more.
    """

    def __init__(self, store, config, examples=None):
        super().__init__(store, config, examples, VALIDATION_SEED)
        for each in self.stores:
            told = f"the validation part has {each.num_tokens} tokens and needs 2 or more"
            require(each.num_tokens > 1, f"{told}; name more text, or a data.validation_path.")
        self.count(lambda store: -(-(store.num_tokens - 1) // self.length))

    def __len__(self):
        return -(-self.num_windows // self.batch_size)

    def rows(self, number, rows):
        """The rows of batch `number` whose numbers are `rows`; past the end their weights are 0."""
        row_B = np.asarray(rows, np.int64)
        if self.contiguous:
            return self.read(row_B * len(self) + number, row_B * len(self))
        window_B = number * self.batch_size + row_B
        return self.read(window_B, window_B, window_B, window_B)


def batch_number(step, skipped):
    """The number of the batch that a step reads: of those not in `skipped`, ascending, the step-th.
    Left out are batches that a run was taken back before, see train.spike_threshold.
    """
    for number in skipped:
        step += bool(number <= step)
    return step


def place(batches, step, sharding, accumulation=None):
    """The batch of a step as global jax.Arrays: (A, B / A, T), or (B, T) without accumulation.
    sharding: of arrays of that rank. A process reads the rows that its devices hold, no others.
    """
    size = batches.batch_size
    leading = (accumulation, size // accumulation) if accumulation else (size,)
    here = np.zeros(leading, bool)
    for index in sharding.addressable_devices_indices_map((*leading, batches.length)).values():
        here[index[:-1]] = True
    rows = np.flatnonzero(here)

    def placed(array):
        whole = array
        if len(rows) < size:
            whole = np.empty((size, array.shape[1]), array.dtype)
            whole[rows] = array
        whole = whole.reshape(*leading, array.shape[1])
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return {name: placed(array) for name, array in batches.rows(step, rows).items()}


def prefetch(make, steps, ahead):
    """Yields make(step) for each of the steps; a thread works up to `ahead` of them in advance. An
    error in make(step) is raised where its result is due. The thread ends with the iterator, when
    that is exhausted, closed or collected.
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
