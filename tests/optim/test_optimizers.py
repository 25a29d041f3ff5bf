"""AdamW against algorithm 2 of its paper in NumPy, with decay masks and clipping."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import base
from lm.config import resolve
from lm.optim.optimizers import decay_mask, optimizer

CONFIG = dataclasses.replace(
    resolve(base().to_dict(), 100).optim, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1
)
PARAMS = {
    "embed": {"table_VD": (5, 3)},
    "layers": {
        "attention": {"query_DNH": (2, 3, 2, 2), "query_bias_NH": (2, 2, 2)},
        "attention_norm": {"scale_D": (2, 3), "bias_D": (2, 3)},
    },
    "head": {"kernel_DV": (3, 5)},
}


def draw(random):
    return jax.tree.map(
        lambda shape: random.standard_normal(shape).astype(np.float32),
        PARAMS,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("decay", ["matrices", "kernels", "all"])
def test_adamw_is_the_paper_s(decay, clip_norm):
    config = dataclasses.replace(CONFIG, decay=decay, clip_norm=clip_norm)
    random, transform, lr = np.random.default_rng(0), optimizer(config), 1e-2
    params = draw(random)
    ours, state = jax.tree.map(jnp.asarray, params), None
    state = transform.init(ours)
    mask = decay_mask(params, decay)
    theirs = jax.tree.map(lambda x: x.astype(np.float64), params)
    m = jax.tree.map(np.zeros_like, theirs)
    v = jax.tree.map(np.zeros_like, theirs)
    for t in range(1, 6):
        grads = draw(random)
        updates, state = transform.update(jax.tree.map(jnp.asarray, grads), state, ours)
        ours = jax.tree.map(lambda p, u: p - lr * u, ours, updates)
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in jax.tree.leaves(grads)))
        scale = min(1.0, clip_norm / norm) if clip_norm else 1.0
        grads = jax.tree.map(lambda g, s=scale: g.astype(np.float64) * s, grads)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g**2, v, grads)
        theirs = jax.tree.map(
            lambda p, m, v, decays, t=t: (
                p - lr * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8) + 0.1 * decays * p)
            ),
            *(theirs, m, v, mask),
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), ours, theirs)


def test_what_decays():
    def decaying(kind):
        found = jax.tree_util.tree_leaves_with_path(
            decay_mask(draw(np.random.default_rng(0)), kind)
        )
        return {path[-1].key for path, decays in found if decays}

    assert decaying("matrices") == {"table_VD", "query_DNH", "kernel_DV"}
    assert decaying("kernels") == {"query_DNH", "kernel_DV"}
    assert len(decaying("all")) == 6
