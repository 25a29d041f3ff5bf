"""The whole model: who sees whom, what is equal to what, and what is kept and moved."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.mesh import make_mesh, sharding, use_mesh
from lm.nn.params import abstract_parameters, bind, initialise
from lm.nn.transformer import Transformer
from lm.objectives.loss import objective_loss
from tests.nn import my_attention  # noqa: F401, registers the backend "sigmoid"
from tests.nn.tiny import parameters, tiny

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 40, (1, 8)).astype(np.int32)
SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 2]], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 4, 0, 1, 2]], np.int32)


def logits(config, params, tokens, **packing):
    return bind(Transformer(config.model), params)(tokens, **packing)


@pytest.fixture(params=["learned", "sinusoid", "rope", "none"])
def position(request):
    return request.param


@pytest.mark.parametrize("backend", ["plain", "sigmoid"])
def test_a_packed_document_is_as_if_alone(position, backend):
    config = tiny({"model.position": position, "model.attention_backend": backend})
    params = parameters(config)
    packed = logits(config, params, TOKENS, positions=POSITIONS, segments=SEGMENTS)
    for part in (slice(0, 5), slice(5, 8)):
        alone = logits(config, params, TOKENS[:, part])
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


@pytest.mark.parametrize("backend", ["plain", "sigmoid"])
def test_nothing_of_a_document_reaches_another_to_the_bit(backend):
    config = tiny({"model.attention_backend": backend, "model.tied_embedding": False})
    params = parameters(config)
    other = TOKENS.copy()
    other[:, :5] = (other[:, :5] + 7) % 40

    @jax.jit
    def of_second(params, tokens):
        def loss(params):
            out = logits(config, params, tokens, positions=POSITIONS, segments=SEGMENTS)
            return jnp.square(out[:, 5:]).sum(), out[:, 5:]

        return jax.grad(loss, has_aux=True)(params)

    (grads, out), (other_grads, other_out) = (of_second(params, x) for x in (TOKENS, other))
    np.testing.assert_array_equal(out, other_out)
    jax.tree.map(np.testing.assert_array_equal, grads, other_grads)


@pytest.mark.parametrize("backend", ["plain", "sigmoid"])
def test_no_position_sees_a_later_one(position, backend):
    config = tiny({"model.position": position, "model.attention_backend": backend})
    params = parameters(config)
    table = params["embed"]["table_VD"]

    def out(rows_TD, t):
        # Token number t reads row t of the table: gradients of rows are those of positions.
        changed = {**params, "embed": {"table_VD": table.at[:8].set(rows_TD)}}
        tokens = jnp.arange(8)[None]
        hidden, _, _ = bind(Transformer(config.model), changed).hidden(tokens)
        return jnp.square(hidden[0, t]).sum()

    for t in (0, 4):
        grads = np.abs(jax.grad(out)(table[:8], t)).max(-1)
        assert (grads[: t + 1] > 0).all()
        assert (grads[t + 1 :] == 0).all()


@functools.cache
def dropped_out(scan, remat):
    """Loss and gradients of a model with dropout, in float64."""
    keys = {"param_dtype": "float64", "compute_dtype": "float64", "num_layers": 3}
    keys |= {"residual_dropout": 0.1, "attention_dropout": 0.1, "scan_layers": scan, "remat": remat}
    config = tiny({f"model.{key}": value for key, value in keys.items()})
    batch = {"tokens": TOKENS, "targets": TOKENS, "weights": np.ones(TOKENS.shape)}

    def loss(params):
        key = jax.random.key(5)
        return objective_loss(
            bind(Transformer(config.model), params), batch, config.objective, key
        )[0]

    with jax.enable_x64(True):
        return jax.jit(jax.value_and_grad(loss))(parameters(config))


@pytest.mark.parametrize(
    ("scan", "remat"), [(True, "none"), (True, "dots"), (False, "dots"), (True, "full")]
)
def test_scanned_unrolled_and_recomputed_are_equal(scan, remat):
    expected = dropped_out(False, "none")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12),
        dropped_out(scan, remat),
        expected,
    )


def test_more_tokens_than_learned_positions_are_refused():
    config = tiny()
    with pytest.raises(UserError, match="9 tokens are more than the model's 8 positions"):
        logits(config, parameters(config), np.zeros((1, 9), np.int32))


def test_gradients_of_frequent_tokens_and_biases_are_not_summed_in_low_precision():
    # All 8192 tokens are the same, and so are all their gradients: a bfloat16 sum of them stops
    # growing at 256.
    low, high = (
        tiny({"model.compute_dtype": dtype, "model.num_layers": 1, "model.position": "none"})
        for dtype in ("bfloat16", "float32")
    )
    params = parameters(low)
    tokens = np.zeros((8, 1024), np.int32)

    def grads(config):
        def loss(params):
            hidden, _, _ = bind(Transformer(config.model), params).hidden(tokens)
            return jnp.float32(hidden[..., :2]).sum()

        return jax.jit(jax.grad(loss))(params)

    ours, expected = grads(low), grads(high)
    for path in (
        ("embed", "table_VD"),
        ("layers", "attention", "value_bias_KH"),
        ("layers", "attention", "output_bias_D"),
        ("layers", "feedforward", "up_bias_F"),
        ("layers", "feedforward", "down_bias_D"),
    ):
        a, b = ours, expected
        for name in path:
            a, b = a[name], b[name]
        assert np.abs(a - b).max() < 0.1 * np.abs(b).max(), path


@pytest.mark.parametrize("packing", [{}, {"segments": SEGMENTS.repeat(8, 0)}])
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 2)])
def test_positions_need_not_be_given_on_a_mesh(shape, packing):
    config = tiny()  # learned positions: a table that fsdp divides, or not
    tokens, params = TOKENS.repeat(8, 0), parameters(config)
    expected = logits(config, params, tokens, **packing)
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    with use_mesh(mesh):
        places = abstract_parameters(Transformer(config.model), mesh)
        params = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, places))
        placed = jax.device_put({"tokens": tokens, **packing}, sharding(mesh, "tokens"))
        ours = jax.jit(lambda params, tokens, **packing: logits(config, params, tokens, **packing))(
            params, placed.pop("tokens"), **placed
        )
        np.testing.assert_allclose(jax.device_get(ours), expected, atol=1e-5)


def lowered(shape, keys=()):
    """The gradient of the loss of one batch, lowered for a mesh; nothing is allocated."""
    config = tiny({"model.position": "rope", **dict(keys)})
    model = Transformer(config.model)
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    with use_mesh(mesh):
        place = sharding(mesh, "tokens")
        size = (config.data.batch_size, config.data.sequence_length)
        tokens = jax.ShapeDtypeStruct(size, jnp.int32, sharding=place)
        weights = jax.ShapeDtypeStruct(size, jnp.float32, sharding=place)
        batch = {"tokens": tokens, "targets": tokens, "weights": weights}

        def loss(params, batch):
            return objective_loss(bind(model, params), batch, config.objective)[0]

        return jax.jit(jax.grad(loss)).lower(abstract_parameters(model, mesh), batch)


LARGE = {"model.d_model": 256, "model.d_ff": 1024, "model.num_layers": 8, "model.qkv_bias": False}


def test_gathered_weights_are_not_kept_for_the_backward_pass():
    # 8 layers of 3 MiB: kept, they would be 24 MiB; three layers and all gradients' parts are 12.
    compiled = lowered((1, 8, 1), {**LARGE, "model.head_width": 64}).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 14 * 2**20


def test_unrolled_layers_keep_the_compiler_from_merging_what_is_recomputed():
    for remat, expected in (("none", 0), ("full", 2)):
        text = lowered((1, 1, 1), {"model.scan_layers": False, "model.remat": remat}).as_text()
        assert text.count("optimization_barrier") >= expected
        assert ("optimization_barrier" in text) == (remat == "full")


def test_a_tensor_mesh_gathers_no_more_than_what_sublayers_read():
    # 64 tokens of width 16: of what norms have parts of, (B, T, D); never heads or hidden units.
    text = lowered((1, 1, 4), {"model.d_ff": 32}).compile().as_text()
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", text)
    assert gathered, text
    assert all(np.prod([int(n) for n in dims.split(",")]) <= 64 * 16 for dims in gathered), gathered
    assert "all-reduce" in text


def test_the_same_parameters_are_born_scanned_or_unrolled():
    trees = [
        initialise(Transformer(tiny({"model.scan_layers": scan, "model.num_layers": 1}).model), 0)
        for scan in (True, False)
    ]
    jax.tree.map(np.testing.assert_array_equal, *trees)
