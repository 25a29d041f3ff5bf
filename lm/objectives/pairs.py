"""Two texts, of which the second follows the first or does not."""

import numpy as np


def next_sentence(tokens, rng, another):
    """(first, second, label): label 0 if the second goes on where the first ends, 1 if not.

    Half of the time it does not: it is of the same length, from another window. Where the first
    ends is drawn, as BERT's texts are no linguistic sentences either: arXiv:1810.04805, section
    3.1, task 2, and A.2.
    """
    cut = 1 + int(rng.random() * (len(tokens) - 1))
    first, second = tokens[:cut], tokens[cut:]
    if rng.random() < 0.5:
        return first, second, 0
    return first, np.asarray(another(rng))[: len(second)], 1
