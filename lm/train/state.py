"""A training state is data: a plain pytree that holds nothing of flax."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.mesh import divided_over_data, use_mesh
from lm.nn.params import abstract_parameters, drawn
from lm.optim.optimizers import optimizer

RECENT = 128  # steps
MOST_SKIPPED = 128  # batches


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training goes on from.

    step: the next one to run, int32. key: raw uint32 data of the root key of all its randomness.
    variables: what is neither weight nor moment: how many steps were skipped, in all and in a row;
    the last losses, float32 (RECENT,), NaN before the first; the numbers of the batches that are
    left out, int32 (MOST_SKIPPED,), ascending, filled up with the largest int32.
    """

    step: jax.Array
    params: dict | None
    opt_state: tuple
    variables: dict
    key: jax.Array


def initial_state(model, config, mesh):
    """The state before the first step, born sharded.

    model: a Transformer of descriptions; config: a Config.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, config, mesh))

    def draw():
        params = drawn(model, config.train.seed, mesh)
        return dataclasses.replace(_around(params, config), params=params)

    with use_mesh(mesh):
        return jax.jit(draw, out_shardings=shardings)()


def _around(params, config):
    """The state without its params."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=None,
        opt_state=optimizer(config.optim).init(params),
        variables={
            "skipped_steps": jnp.zeros((), jnp.int32),
            "skipped_in_a_row": jnp.zeros((), jnp.int32),
            "recent_losses": jnp.full(RECENT, jnp.nan, jnp.float32),
            "skipped_batches": jnp.full(MOST_SKIPPED, jnp.iinfo(jnp.int32).max, jnp.int32),
        },
        key=jax.random.key_data(jax.random.key(config.train.seed + 1)),
    )


def abstract_state(model, config, mesh):
    """The state as jax.ShapeDtypeStruct with shardings: moments live where their parameters do, if
    config.optim says nothing else.
    """
    params = abstract_parameters(model, mesh)
    plain = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    state = jax.eval_shape(lambda params: _around(params, config), plain)
    places = {
        jax.tree_util.keystr(path): leaf.sharding
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }

    def place(path, leaf):
        # A moment's path ends with its parameter's: .opt_state[1].mu['embed']['table_VD'].
        written = jax.tree_util.keystr(path)
        found = [sharding for name, sharding in places.items() if written.endswith(name)]
        sharding = found[0] if found else NamedSharding(mesh, P())
        if found and config.optim.shard_moments:
            spec = divided_over_data(sharding.spec, leaf.shape, mesh)
            sharding = NamedSharding(mesh, spec)
        if found and config.optim.offload_moments:
            sharding = sharding.with_memory_kind("pinned_host")
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.tree_util.tree_map_with_path(place, state)
    return dataclasses.replace(state, params=params)
