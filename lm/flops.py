"""What a model costs in parameters, FLOPs and bytes: plain arithmetic on its TransformerConfig and
on the descriptions of its parameters. No array is made.

A multiply-add is 2 FLOPs. Dims as everywhere: V vocabulary, P positions, D model, N query heads, K
key heads, H head width, F hidden, L layers, T sequence.
"""

import dataclasses
import functools
import math
import types

from lm.mesh import parameter_spec
from lm.nn.params import descriptions
from lm.nn.transformer import Transformer

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

CONVENTIONS = ("causal", "palm", "chinchilla", "kaplan")


@functools.lru_cache(maxsize=32)
def _parameters(config):
    """{path: description} of every parameter, as lm.nn.params has them."""
    # What is counted depends on none of these, and they may need what is not there: jax's float64,
    # an attention function of one's own.
    plain = {"param_dtype": "float32", "compute_dtype": "float32", "attention_backend": "plain"}
    found = descriptions(Transformer(dataclasses.replace(config, **plain)))
    return {"/".join(path): variable for path, variable in found.items()}


def _sizes(config, active=False):
    """{path: how many} of the parameters that are trained; active: of experts those of a token."""
    sizes = {}
    for name, variable in _parameters(config).items():
        size = math.prod(variable.get_value().shape)
        if active and "experts" in variable.dims[:-1]:  # the router's have it last
            size = size // config.num_experts * config.experts_per_token
        if not variable.buffer:
            sizes[name] = size
    return sizes


def parameter_count(config):
    return sum(_sizes(config).values())


def active_parameter_count(config):
    """Parameters that one token meets: of the experts, those that it chooses."""
    return sum(_sizes(config, active=True).values())


def parameter_parts(config, active=False):
    """{part: number of its parameters}; the parts of all layers are taken together."""
    parts = {}
    for name, size in _sizes(config, active).items():
        part = name.removeprefix("layers/").split("/")[0]
        part = "norms" if part.endswith("norm") else part
        parts[part] = parts.get(part, 0) + size
    return parts


def matmul_parameters(config):
    """Weights that a token's activations are multiplied with: the head, even if tied, and of the
    experts those that it chooses; no lookup, norm or bias, nor what predicts a second token.
    """
    return sum(_matrices(config).values())


def _matrices(config):
    """{path: size} of those weights."""
    sizes = _sizes(dataclasses.replace(config, mtp_depth=0), active=True)
    return {name: size for name, size in sizes.items() if _multiplies(name, config)}


def _multiplies(name, config):
    """Whether a parameter multiplies tokens; relative positions are multiplied once for a batch."""
    leaf = name.rsplit("/", 1)[-1]
    table = leaf in ("table_PD", "table_RN", "table_YD")
    table |= leaf == "table_VD" and not (config.tied_embedding and config.head != "none")
    vector = leaf.startswith(("scale", "sinks")) or "bias_" in leaf
    of_text = name.startswith(("pooler/", "next_sentence/"))
    return not (table or vector or of_text or leaf == "position_DNH")


def _is_of_source(name):
    """Whether a parameter of an encoder-decoder multiplies the source's tokens."""
    cross = "layers/cross_attention/"
    return name.startswith(("encoder/", f"{cross}key", f"{cross}value"))


def _pair_flops(config):
    """FLOPs of one layer's attention, of a query and a key: their score, and the value."""
    scores = 2 if config.position == "relative" else 1  # relative positions have their own
    return 2 * config.num_heads * (scores * config.head_width + config.value_width)


def _windows(config, length):
    """Of each layer, how many of `length` keys one query sees at most."""
    return [min(config.window, length) if layer.local else length for layer in config.layers()]


def _twice_pairs(config, length, windows):
    """Twice the pairs of a query and a key that it sees, in layers of one stack with `windows`."""
    if config.causal:  # the first w tokens see half of w, the others w
        return sum(window * (2 * length - window) for window in windows)
    sides = [min(window // 2, length - 1) if window < length else length for window in windows]
    return sum(
        2 * (length**2 if side == length else length * (2 * side + 1) - side * (side + 1))
        for side in sides
    )


def training_flops_per_token(config, sequence_length, convention="causal", target_length=0):
    """FLOPs of forward and backward pass for one token, nothing recomputed. Of an encoder-decoder:
    for one of the source, with its share of a target of target_length tokens (0: as long).

    Of the experts, only those that the token chooses are counted, whatever the convention.
    causal: 6 * matmul_parameters + 6 * L * N * H * T: what the products need, a token seeing half
    its sequence, all of it in an encoder, or less where there are windows.
    palm: 6 * active_parameter_count + 12 * L * N * H * T (arXiv:2204.02311, appendix B).
    chinchilla: 6 * active_parameter_count, the "6ND" (arXiv:2203.15556).
    kaplan: 6 * parameters other than embeddings and head (arXiv:2001.08361).
    """
    length, pair = sequence_length, _pair_flops(config)
    both = config.stack == "encoder_decoder"
    target = target_length or length if both else length
    if convention == "causal":
        matrices = _matrices(config).items()
        products = sum(n * (length if _is_of_source(name) else target) for name, n in matrices)
        if config.mtp_depth:  # to predict a second token, with the head again
            sizes = _sizes(config, active=True).items()
            mtp = [n for name, n in sizes if name.startswith("mtp/") and _multiplies(name, config)]
            products += (sum(mtp) + config.vocab_size * config.d_model) * length
        windows = _windows(config, target)
        pairs = _twice_pairs(config, target, windows + windows[-1:] * config.mtp_depth)
        if both:
            encoder = config.encoder()
            pairs += _twice_pairs(encoder, length, _windows(encoder, length))
            pairs += 2 * config.num_layers * target * length
        return (12 * products + 3 * pair * pairs) // (2 * length)
    windows = _windows(config, length)
    windows += windows[-1:] * config.mtp_depth
    if both:
        windows += _windows(config.encoder(), length) + [length] * config.num_layers
    if convention == "palm":
        return 6 * active_parameter_count(config) + 3 * pair * sum(windows)
    if convention == "chinchilla":
        return 6 * active_parameter_count(config)
    parts = parameter_parts(config, active=True)
    return 6 * sum(parts[part] for part in parts if part not in ("embed", "positions", "head"))


def forward_flops_per_token(config, sequence_length):
    """FLOPs to read one token of a whole sequence: a third of training's, without mtp_depth."""
    without = dataclasses.replace(config, mtp_depth=0)
    return training_flops_per_token(without, sequence_length) // 3


def decode_flops_per_token(config, context):
    """FLOPs to generate one token after `context` others, with a cache; after a source as long."""
    pair = _pair_flops(config)
    if config.kv_latent:  # queries, and what is attended to, are as wide as what is cached
        pair = 2 * config.num_heads * (2 * config.kv_latent + config.rope_width)
    keys = sum(_windows(config, context))
    if config.stack == "encoder_decoder":
        keys += config.num_layers * context
    matrices = _matrices(config).items()
    return 2 * sum(size for name, size in matrices if not _is_of_source(name)) + pair * keys


def parameters_per_device(config, fsdp=1, tensor=1):
    """Parameters that one device of a mesh keeps, buffers too, by the table of lm/mesh.py."""
    mesh, total = types.SimpleNamespace(shape={"data": 1, "fsdp": fsdp, "tensor": tensor}), 0
    for variable in _parameters(config).values():
        shape = variable.get_value().shape
        axes = [axis for axis in parameter_spec(variable.dims, shape, mesh) if axis]
        total += math.prod(shape) // math.prod(mesh.shape[axis] for axis in axes)
    return total


def state_bytes(config, fsdp=1, tensor=1):
    """Bytes that a device keeps in a training step with AdamW, activations and buffers apart."""
    size = parameters_per_device(config, fsdp, tensor) * ITEM_BYTES[config.param_dtype]
    return {"parameters": size, "gradients": size, "adam_moments": 2 * size}


def checkpoint_bytes(config):
    """Bytes of one checkpoint before compression: parameters and both moments."""
    return 3 * parameter_count(config) * ITEM_BYTES[config.param_dtype]


def activation_bytes(config, tokens, columns, tensor=1):
    """Activations that every way of training keeps at least: a floor, not an estimate.

    layer_inputs: what enters each layer, (L, tokens, D) in the compute dtype; with remat="full"
    that is all that layers keep. logits: one float32 copy of them. tokens: of one device and one
    accumulation step; columns: of the vocabulary, as many as have their logits at one time.
    """
    layers = config.num_layers + config.num_encoder_layers + config.mtp_depth
    inputs = layers * tokens * config.d_model * ITEM_BYTES[config.compute_dtype]
    return {"layer_inputs": inputs, "logits": tokens * columns * 4 // tensor}


def cache_bytes(config, length):
    """Keys and values, or latents, of a sequence of `length` tokens in all layers, in the compute
    dtype: a local layer keeps those of its window, one with cross-attention a source as long.
    """
    width = 2 * config.num_kv_heads * config.head_width
    width = config.kv_latent + config.rope_width if config.kv_latent else width
    kept = _windows(config, length)
    kept += [length] * config.num_layers if config.stack == "encoder_decoder" else []
    return width * sum(kept) * ITEM_BYTES[config.compute_dtype]


def cache_bytes_per_token(config):
    """Of one token, as long as all layers keep it."""
    return cache_bytes(config, 1)
