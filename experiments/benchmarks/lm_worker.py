"""lm's train step on random tokens: python -m experiments.benchmarks.lm_worker small."""

import sys

import numpy as np

from experiments.benchmarks import worker
from lm.cluster.memory import keep_freed_memory


def stepper(config):
    """(state, train_step, batch) of a run on one device."""
    import jax

    from lm.mesh import make_mesh, sharding
    from lm.nn.transformer import Transformer
    from lm.train.state import abstract_state, initial_state
    from lm.train.step import make_train_step

    mesh = make_mesh(devices=jax.devices()[:1])
    model = Transformer(config.model)
    state = initial_state(model, config, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, config, mesh))
    shape = (1, config.data.batch_size, config.data.sequence_length + 1)
    tokens = np.random.default_rng(0).integers(0, worker.VOCAB, shape, np.int32)
    weights = np.ones((*shape[:2], shape[2] - 1), np.float32)
    batch = {"tokens": tokens[..., :-1], "targets": tokens[..., 1:], "weights": weights}
    batch = jax.device_put(batch, sharding(mesh, "microbatches"))
    return state, make_train_step(model, config, shardings), batch


def main(size):
    worker.keep_to_threads()
    keep_freed_memory()
    import jax

    state, train_step, batch = stepper(worker.config_of(size))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))

    def run(steps):
        """As the loop runs them: a step's loss is read when the next one is under way."""
        nonlocal state
        state, metrics = train_step(state, batch)
        for _ in range(steps - 1):
            last = metrics
            state, metrics = train_step(state, batch)
            float(last["loss"])
        return float(metrics["loss"])

    about = {"loss": run(1), "parameters": parameters, "jax": jax.__version__}
    worker.serve(run, about)


if __name__ == "__main__":
    main(sys.argv[1])
