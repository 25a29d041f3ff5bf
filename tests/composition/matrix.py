"""What is composed with what, and the comparison of one row with the one-device reference.

To put a new switch under test, add its values to FACTORS, and to RULES what it refuses.
"""

import contextlib
import dataclasses
import math
import zlib
from unittest import mock

import jax
import numpy as np
import optax

from lm.mesh import mesh_of, sharding, use_mesh
from lm.nn import attention
from lm.nn.params import abstract_parameters
from lm.nn.transformer import Transformer
from lm.optim.optimizers import optimizer
from lm.train.state import abstract_state
from lm.train.step import make_train_step
from tests.composition.covering import covering_rows, pairs
from tests.nn import my_attention  # noqa: F401, registers the backend "sigmoid"
from tests.nn.tiny import tiny

attention.QUERIES = 5  # of a chunk: several in a sequence
SEED = 2

# A tiny model with which every mesh below is possible. The large eps makes an update proportional
# to the clipped gradient, so that it shows errors as plainly as the gradient does, and the learning
# rate makes it as large as the parameter, so that it does not drown in the parameter's rounding.
SMALL = {
    "data.batch_size": 32,
    "optim.peak_lr": 100.0,
    "optim.weight_decay": 1e-3,
    "optim.warmup_steps": 0,
    "optim.eps": 1.0,
}


def _values(key, *values):
    """The factor of one key of the configuration."""
    return {str(value): {key: value} for value in values}


def _mesh(data, fsdp, tensor):
    return {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}


def _biases(qkv, output, feedforward):
    keys = ("qkv_bias", "attention_output_bias", "feedforward_bias")
    return {f"model.{key}": on for key, on in zip(keys, (qkv, output, feedforward), strict=True)}


def _dropout(rate):
    kinds = ("embedding", "attention", "residual", "activation", "final")
    return {f"model.{kind}_dropout": rate for kind in kinds}


MESHES = (
    *((1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (1, 1, 2)),
    *((2, 2, 2), (1, 2, 4), (2, 1, 4), (4, 2, 1), (1, 4, 2)),
)

LATENT = {
    "model.kv_latent": 6,
    "model.head_width": 6,
    "model.rope_width": 4,
    "model.value_width": 3,
}
EXPERTS = {
    "model.num_experts": 4,
    "model.experts_per_token": 2,
    "model.expert_d_ff": 8,
    "objective.router_aux_loss": 0.1,
    "objective.router_z_loss": 0.01,
}

ENCODER = {"model.stack": "encoder", "data.separate_documents": False}
BOTH = {"model.stack": "encoder_decoder", "data.separate_documents": False}

# {factor: {value: the keys that it sets}}
FACTORS = {
    "objective": {
        "causal": {"model.stack": "decoder", "objective.kind": "causal"},
        "masked": {
            **ENCODER,
            "objective.kind": "masked",
            "objective.next_sentence": True,
            "model.pooler": True,
            "model.next_sentence": True,
            "model.token_types": 2,
            "model.skip_first_norm": True,
        },
        "replaced": {**ENCODER, "objective.kind": "replaced", "model.detector": True},
        "contrastive": {**ENCODER, "objective.kind": "contrastive", "objective.pooling": "mean"},
        "spans": {**BOTH, "objective.kind": "span_corruption"},
        "prefix": {
            "model.stack": "decoder",
            "objective.kind": "prefix",
            "model.prefix_attention": True,
            "data.separate_documents": False,
        },
    },
    "mesh": {
        **{"x".join(map(str, shape)): _mesh(*shape) for shape in MESHES},
        "2x2x2 over 2 slices": {**_mesh(1, 2, 2), "mesh.dcn_data": 2},
        "1x4x2 over 2 slices": {**_mesh(1, 2, 2), "mesh.dcn_fsdp": 2},
    },
    "dtype": {
        "float64": {"model.param_dtype": "float64", "model.compute_dtype": "float64"},
        "float32": {"model.param_dtype": "float32", "model.compute_dtype": "float32"},
        "bfloat16": {"model.param_dtype": "float32", "model.compute_dtype": "bfloat16"},
    },
    "backend": _values("model.attention_backend", "plain", "chunked", "sigmoid"),
    "heads": {
        f"{heads}/{kv}": {"model.num_heads": heads, "model.num_kv_heads": kv}
        for heads, kv in ((8, 8), (8, 2), (4, 1), (6, 3))
    },
    "rows": {"stream": {}, "documents": {}, "padded": {}},
    "accumulation": _values("train.accumulation_steps", 1, 2, 4),
    "scan": _values("model.scan_layers", True, False),
    "remat": {
        **_values("model.remat", "none", "dots", "full", "query,key,gate"),
        "in pieces": {"model.remat": "full", "model.feedforward_pieces": 3},
        "offloaded": {"model.remat": "value,up", "model.offload": "layer_input,attention"},
    },
    "moments": {
        "as weights": {},
        "divided": {"optim.shard_moments": True},
        "offloaded": {"optim.shard_moments": True, "optim.offload_moments": True},
    },
    "norm": _values("model.norm", "layer_norm", "rms_norm"),
    "norm_bias": _values("model.norm_bias", True, False),
    "placement": _values("model.norm_placement", "pre", "post", "sandwich", "output"),
    "final_norm": _values("model.final_norm", True, False),
    "embedding_norm": _values("model.embedding_norm", True, False),
    "parallel_block": _values("model.parallel_block", True, False),
    "norm_offset": _values("model.norm_offset", False, True),
    "query_key_norm": _values("model.query_key_norm", "none", "head", "full"),
    "position": {
        **_values("model.position", "learned", "sinusoid", "rope", "relative", "alibi", "none"),
        "buckets": {
            "model.position": "buckets",
            "model.position_buckets": 4,
            "model.position_max_distance": 6,
        },
        "yarn": {
            "model.position": "rope",
            "model.rope_scaling": "yarn",
            "model.rope_factor": 4.0,
            "model.rope_original_positions": 4,
            "model.rope_mscale": 0.7,
        },
    },
    "attention": {
        "plain": {"model.kv_latent": 0},
        "capped": {"model.kv_latent": 0, "model.attention_cap": 2.0, "model.attention_scale": 0.5},
        "sinks": {"model.kv_latent": 0, "model.attention_sinks": True},
        "latent": LATENT,
        "latents": {**LATENT, "model.query_latent": 5},
    },
    "layers": {
        "full": {"model.attention_pattern": "full"},
        "mixed": {
            "model.attention_pattern": "local,full",
            "model.window": 3,
            "model.num_layers": 4,
        },
        "local": {"model.attention_pattern": "local", "model.window": 3},
    },
    "experts": {
        "none": {},
        "dropless": {**EXPERTS, "model.router_bias": True, "model.router_renormalise": True},
        "shared": {
            **EXPERTS,
            "model.num_layers": 3,
            "model.dense_layers": 1,
            "model.router_score": "sigmoid",
            "model.router_selection_bias": True,
            "model.router_groups": 2,
            "model.router_group_score": "top2",
            "model.router_scale": 1.5,
            "model.shared_expert_d_ff": 8,
            "model.shared_expert_gate": True,
            "objective.router_sequence_loss": 0.1,
            "optim.router_bias_step": 0.01,
        },
        "switch": {
            **EXPERTS,
            "model.num_layers": 4,
            "model.experts_per_token": 1,
            "model.experts_every": 2,
            "model.expert_capacity_factor": 0.8,
            "model.router_jitter": 0.1,
        },
    },
    "mtp": {"off": {}, "on": {"model.mtp_depth": 1, "objective.mtp_loss": 0.3}},
    "head": {
        "linear": {"model.head": "linear"},
        "transform": {"model.head": "transform", "model.head_bias": "learned"},
    },
    "output": {
        "plain": {},
        "scaled": {
            "model.embedding_scale": 1.5,
            "model.logit_scale": 0.5,
            "model.logit_cap": 3.0,
        },
    },
    "activation": _values("model.activation", "gelu", "gelu_tanh", "relu", "silu", "clamped_silu"),
    "gated": _values("model.gated", True, False),
    "biases": {
        "all": _biases(True, True, True),
        "qkv": _biases(True, False, False),
        "none": _biases(False, False, False),
    },
    "tied": _values("model.tied_embedding", True, False),
    "vocabulary": _values("model.vocab_size", 40, 36),
    "chunk": _values("objective.logits_chunk", 0, 16, 7),
    "loss": {
        "plain": {},
        "smoothed": {"objective.label_smoothing": 0.1, "objective.z_loss": 1e-2},
    },
    "dropout": {"off": _dropout(0.0), "on": _dropout(0.1)},
    "clip": _values("optim.clip_norm", 0.0, 0.05),
}


def _heads_refused(keys):
    heads, kv, tensor = keys["model.num_heads"], keys["model.num_kv_heads"], keys["mesh.tensor"]
    return heads % tensor or (kv % tensor and tensor % kv)


def _latent(keys):
    return keys["model.kv_latent"] > 0


def _kind(keys):
    return keys["objective.kind"]


# What must be refused: the factors that decide it, and when, given the keys that they set.
RULES = (
    (("mesh", "heads"), _heads_refused),
    (("mesh", "vocabulary"), lambda keys: keys["model.vocab_size"] % keys["mesh.tensor"]),
    (
        ("parallel_block", "placement"),
        lambda keys: keys["model.parallel_block"] and keys["model.norm_placement"] != "pre",
    ),
    (
        ("attention", "heads"),
        lambda keys: _latent(keys) and keys["model.num_heads"] != keys["model.num_kv_heads"],
    ),
    (
        ("attention", "position"),
        lambda keys: _latent(keys) and keys["model.position"] not in ("rope", "none"),
    ),
    (
        ("attention", "query_key_norm"),
        lambda keys: _latent(keys) and keys["model.query_key_norm"] != "none",
    ),
    (("attention", "biases"), lambda keys: _latent(keys) and keys["model.qkv_bias"]),
    (("attention", "layers"), lambda keys: _latent(keys) and "model.window" in keys),
    (
        ("attention", "backend"),
        lambda keys: (
            keys["model.attention_backend"] == "sigmoid"
            and (keys.get("model.attention_cap") or keys.get("model.attention_sinks"))
        ),
    ),
    (
        ("position", "backend"),
        lambda keys: (
            keys["model.attention_backend"] == "sigmoid"
            and keys["model.position"] in ("relative", "alibi", "buckets")
        ),
    ),
    (
        ("activation", "gated"),
        lambda keys: keys["model.activation"] == "clamped_silu" and not keys["model.gated"],
    ),
    (
        ("activation", "head"),
        lambda keys: (
            keys["model.activation"] == "clamped_silu" and keys["model.head"] == "transform"
        ),
    ),
    (
        ("activation", "objective"),
        lambda keys: keys["model.activation"] == "clamped_silu" and _kind(keys) == "replaced",
    ),
    (
        ("objective", "position"),
        lambda keys: _kind(keys) != "causal" and keys["model.position"] in ("relative", "alibi"),
    ),
    (
        ("objective", "mtp"),
        lambda keys: _kind(keys) != "causal" and keys.get("model.mtp_depth"),
    ),
    (
        ("objective", "dropout"),
        lambda keys: _kind(keys) == "contrastive" and not keys["model.residual_dropout"],
    ),
    (
        ("objective", "parallel_block"),
        lambda keys: _kind(keys) == "span_corruption" and keys["model.parallel_block"],
    ),
    (
        ("objective", "attention"),
        lambda keys: _kind(keys) == "span_corruption" and _latent(keys),
    ),
    (
        ("objective", "experts"),
        lambda keys: _kind(keys) == "span_corruption" and keys.get("model.router_selection_bias"),
    ),
)

# What works and is not compared: a rounding to bfloat16 may choose another expert, and any rounding
# another token to put in place of one.
UNCOMPARED = (
    (
        ("dtype", "objective"),
        lambda keys: keys["model.compute_dtype"] != "float64" and _kind(keys) == "replaced",
    ),
    (
        ("dtype", "experts"),
        lambda keys: (
            keys["model.compute_dtype"] == "bfloat16" and keys.get("model.num_experts", 0) > 0
        ),
    ),
)

# Largest error. Of a loss relative; of a parameter's gradient or update max|a - b| over max|b|, or
# over 1e-3 of the model's largest entry where that is more: some true gradients are zero (key
# biases). Low precisions are compared with float64 as well, so theirs is what rounding does.
TOLERANCE = {"float64": 1e-8, "float32": 2e-4, "bfloat16": 0.5}

# Most of a row's time is compilation; what LLVM makes of it is not what is under test.
QUICK = {"xla_backend_optimization_level": 0}


def settings(row):
    return {key: value for name in row for key, value in FACTORS[name][row[name]].items()}


def allowed(row):
    """False where no rule's factors are all in the partial row and refuse it."""
    return not any(
        rule(settings({name: row[name] for name in names}))
        for names, rule in (*RULES, *UNCOMPARED)
        if all(name in row for name in names)
    )


def wanted():
    """Every pair of values. Those that are not about precision have to occur in float64."""
    for pair in pairs({name: tuple(values) for name, values in FACTORS.items()}):
        yield pair if "dtype" in pair else {**pair, "dtype": "float64"}


def rows():
    """The rows that have to equal the reference, in an order drawn from SEED."""
    factors = {name: tuple(values) for name, values in FACTORS.items()}
    found = covering_rows(factors, list(wanted()), allowed, SEED)
    order = np.random.default_rng(SEED).permutation(len(found))
    return [found[number] for number in order]


def refused_rows(supported):
    """For each combination that a rule refuses, a row that has it and is else as one of those
    supported.
    """
    bad = [pair for names, _ in RULES for pair in _combinations(names) if not allowed(pair)]
    return [{**supported[number % len(supported)], **pair} for number, pair in enumerate(bad)]


def _combinations(names):
    combinations = [{}]
    for name in names:
        combinations = [{**row, name: value} for row in combinations for value in FACTORS[name]]
    return combinations


def config_of(row):
    return tiny({**SMALL, **settings(row)})


def reference_of(config):
    """The same model in float64 on one device: unrolled, in one part, its logits at once, nothing
    recomputed.

    With dropout the number of parts stays, as each part draws a mask of its own; and with experts,
    as each part is balanced by itself.
    """
    model = dataclasses.replace(
        config.model,
        param_dtype="float64",
        compute_dtype="float64",
        scan_layers=False,
        remat="none",
        offload="",
        attention_backend=config.model.attention_backend.replace("chunked", "plain"),
    )
    by_part = config.model.residual_dropout or config.model.num_experts
    by_part = by_part or config.objective.family == "text" or config.objective.kind == "replaced"
    parts = config.train.accumulation_steps if by_part else 1
    return dataclasses.replace(
        config,
        model=model,
        mesh=dataclasses.replace(config.mesh, **dict.fromkeys(vars(config.mesh), 1)),
        optim=dataclasses.replace(config.optim, shard_moments=False, offload_moments=False),
        objective=dataclasses.replace(config.objective, logits_chunk=0),
        train=dataclasses.replace(config.train, accumulation_steps=parts),
    )


def batch_of(row, config):
    """(B, T) arrays as the loader makes them, with weights that differ from part to part."""
    kind = row.get("objective", "causal")
    batch = causal_batch(row if kind == "causal" else {"rows": "stream"}, config)
    if kind == "causal":
        return batch
    rng = np.random.default_rng(1)
    size, length = batch["tokens"].shape
    real = np.arange(length) < rng.integers(2, length + 1, (size, 1))
    if row["rows"] == "stream":
        real[:] = True
    segments, weights = real.astype(np.int32), batch["weights"] * real
    if kind == "spans":
        source = rng.integers(0, config.model.vocab_size, (size, length), np.int32)
        return {**batch, "source": source, "source_segments": segments}
    batch |= {"segments": segments, "weights": weights}
    if kind == "contrastive":
        return {**batch, "weights": np.ones((size, 1), np.float32)}
    if kind == "prefix":
        prefix = np.arange(length) < rng.integers(1, length, (size, 1))
        return {**batch, "prefix": (prefix & real).astype(np.int32)}
    if kind == "masked":
        batch["token_types"] = (np.arange(length) > 3).astype(np.int32) * segments
        batch["next_sentence"] = rng.integers(0, 2, (size, 1), np.int32)
    return batch


def causal_batch(row, config):
    """That of predicting the next token."""
    rng = np.random.default_rng(0)
    size, length = config.data.batch_size, config.data.sequence_length
    text = rng.integers(0, config.model.vocab_size, (size, length + 1), np.int32)
    weights = (rng.random((size, length)) < np.linspace(0.3, 1, size)[:, None]).astype(np.float32)
    batch = {"tokens": text[:, :-1], "targets": text[:, 1:], "weights": weights}
    if row["rows"] == "stream":
        return batch
    segments = 1 + np.sort(rng.integers(0, 3, (size, length), np.int32), axis=-1)
    if row["rows"] == "padded":
        padding = np.arange(length) >= rng.integers(length // 2, length + 1, (size, 1))
        segments[padding], weights[padding] = 0, 0
    starts = (segments[:, :, None] == segments[:, None, :]).argmax(-1)
    positions = (np.arange(length) - starts).astype(np.int32)
    return {**batch, "segments": segments, "positions": positions}


def parameters(config):
    """Random values for every parameter, biases and scales too; the same for every precision."""

    def draw(path, leaf):
        rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        values = 0.2 * rng.standard_normal(leaf.shape) + path[-1].key.startswith("scale")
        return values.astype(np.float32).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_parameters(Transformer(config.model)))


@dataclasses.dataclass
class Outcome:
    """Of one train step, on the host. grads and updates (of the parameters): {path: array}."""

    loss: float
    grad_norm: float
    fingerprint: list
    grads: dict
    updates: dict


def run(config, batch):
    """The Outcome of the first train step of the matrix's parameters on the config's mesh."""
    model = Transformer(config.model)
    sizes, parts = dataclasses.asdict(config.mesh), config.train.accumulation_steps
    mesh = mesh_of(config, jax.devices()[: math.prod(sizes.values())])
    params = parameters(config)
    with recorded_gradients(), use_mesh(mesh):
        places = abstract_state(model, config, mesh)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), places)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, places)
        state = jax.device_put(dataclasses.replace(zeros, params=params), shardings)
        batch = {name: x.reshape(parts, -1, x.shape[-1]) for name, x in batch.items()}
        batch = jax.device_put(batch, sharding(mesh, "microbatches"))
        step = make_train_step(model, config, shardings).lower(state, batch)
        state, metrics = step.compile(compiler_options=QUICK)(state, batch)
    state, metrics = jax.device_get((state, metrics))
    return Outcome(
        loss=float(metrics["loss"]),
        grad_norm=float(metrics["grad_norm"]),
        fingerprint=metrics["fingerprint"].tolist(),
        grads=_by_path(state.opt_state[0]),
        updates=_by_path(jax.tree.map(np.subtract, state.params, params)),
    )


@contextlib.contextmanager
def recorded_gradients():
    """Inside, the optimizer's state is (the gradients that it was last given, its own state)."""

    def recording(config):
        inner = optimizer(config)

        def update(grads, state, params):
            updates, state = inner.update(grads, state[1], params)
            return updates, (grads, state)

        return optax.GradientTransformation(lambda params: (params, inner.init(params)), update)

    with (
        mock.patch("lm.train.state.optimizer", recording),
        mock.patch("lm.train.step.optimizer", recording),
    ):
        yield


def _by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def compare(outcome, reference, tolerance):
    """Raise AssertionError that lists what differs by more than the tolerance."""
    wrong = {}
    for name in ("loss", "grad_norm"):
        expected = getattr(reference, name)
        wrong[name] = abs(getattr(outcome, name) - expected) / abs(expected)
    for kind in ("grads", "updates"):
        ours, theirs = getattr(outcome, kind), getattr(reference, kind)
        assert ours.keys() == theirs.keys()
        largest = max(np.abs(x).max() for x in theirs.values())
        for path, b in theirs.items():
            difference = np.abs(ours[path].astype(np.float64) - b).max()
            wrong[f"{kind}/{path}"] = difference / max(np.abs(b).max(), 1e-3 * largest)
    # Not `<`: a nan is wrong too.
    wrong = {name: error for name, error in wrong.items() if not error <= tolerance}
    assert not wrong, f"off by more than {tolerance}: {wrong}"
