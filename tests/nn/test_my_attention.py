"""The example of `my_attention.py`: it computes what its paper says, and trains on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from lm.mesh import make_mesh, sharding, use_mesh
from lm.nn.attention import Visible
from lm.nn.transformer import Transformer
from lm.train.state import abstract_state, initial_state
from lm.train.step import make_train_step
from tests.nn.my_attention import sigmoid_attention
from tests.nn.tiny import tiny

STEPS = 30


def test_it_is_its_formula():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 5, heads, 3)).astype(np.float32) for heads in (4, 2, 2))
    positions = jnp.arange(5)[None]
    ours = sigmoid_attention(q, k, v, Visible(positions, positions), scale=0.7)
    expected = np.zeros(q.shape)
    for t, n, s in np.ndindex(5, 4, 5):
        if s <= t:
            weight = expit(0.7 * q[0, t, n] @ k[0, s, n // 2] - np.log(t + 1))
            expected[0, t, n] += weight * v[0, s, n // 2]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def losses(shape):
    keys = {"model.attention_backend": "sigmoid", "model.num_kv_heads": 2, "model.position": "rope"}
    config = tiny({**keys, "optim.peak_lr": 1e-2, "optim.warmup_steps": 0})
    model = Transformer(config.model)
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    # Every row counts on from where it starts: what comes next is easy to learn.
    text = (np.arange(8)[:, None] * 5 + np.arange(9)) % config.model.vocab_size
    text = text.astype(np.int32)
    weights = np.ones((8, 8), np.float32)
    batch = {"tokens": text[:, :-1], "targets": text[:, 1:], "weights": weights}
    batch = {name: x[None] for name, x in batch.items()}
    found = []
    with use_mesh(mesh):
        batch = jax.device_put(batch, sharding(mesh, "microbatches"))
        state = initial_state(model, config, mesh)
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, config, mesh))
        step = make_train_step(model, config, places)
        for _ in range(STEPS):
            state, metrics = step(state, batch)
            found.append(float(metrics["loss"]))
    return found


def test_it_learns_on_eight_devices_what_it_learns_on_one():
    eight, one = losses((2, 2, 2)), losses((1, 1, 1))
    assert eight[-1] < 0.5 * eight[0]
    np.testing.assert_allclose(eight, one, rtol=1e-4)
