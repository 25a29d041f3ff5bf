"""What a model costs in parameters, FLOPs and bytes: plain arithmetic on its TransformerConfig.

A multiply-add is 2 FLOPs. Dims as everywhere: V vocabulary, P positions, D model, N query heads, K
key heads, H head width, F hidden, L layers, T sequence.
"""

import math

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

CONVENTIONS = ("causal", "palm", "chinchilla", "kaplan")


def parameter_shapes(config):
    """{path: shape} of every parameter; a path ends in its dims but for the leading L."""
    names = ["embed/table_VD"]
    if config.position == "learned":
        names.append("positions/table_PD")
    if config.embedding_norm:
        names += _norm(config, "embedding_norm")
    names += [f"layers/{name}" for name in _layer_names(config)]
    if config.final_norm:
        names += _norm(config, "final_norm")
    if not config.tied_embedding:
        names.append("head/kernel_DV")
    sizes = {
        "V": config.vocab_size,
        "P": config.max_positions,
        "D": config.d_model,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_width,
        "F": config.d_ff,
    }
    leading = {name: (config.num_layers,) if name.startswith("layers/") else () for name in names}
    return {name: leading[name] + tuple(sizes[dim] for dim in _dims(name)) for name in names}


def _layer_names(config):
    names = [f"attention/{name}" for name in ("query_DNH", "key_DKH", "value_DKH", "output_NHD")]
    if config.qkv_bias:
        names += [f"attention/{name}_bias_{dims}" for name, dims in _QKV_BIASES]
    if config.attention_output_bias:
        names.append("attention/output_bias_D")
    inner = ("up", "gate") if config.gated else ("up",)
    names += [f"feedforward/{name}_DF" for name in inner] + ["feedforward/down_FD"]
    if config.feedforward_bias:
        names += [f"feedforward/{name}_bias_F" for name in inner] + ["feedforward/down_bias_D"]
    for branch in ("attention",) if config.parallel_block else ("attention", "feedforward"):
        for place in _NORMS[config.norm_placement]:
            names += _norm(config, f"{branch}_{place}")
    return names


_QKV_BIASES = (("query", "NH"), ("key", "KH"), ("value", "KH"))
_NORMS = {
    "pre": ("norm",),
    "post": ("residual_norm",),
    "sandwich": ("norm", "output_norm"),
    "output": ("output_norm",),
}


def _norm(config, name):
    return [f"{name}/scale_D", f"{name}/bias_D"] if config.norm_bias else [f"{name}/scale_D"]


def _dims(name):
    return name.rsplit("_", 1)[1]


def _is_vector(name):
    return "bias_" in name or "scale_" in name


def parameter_count(config):
    return sum(map(math.prod, parameter_shapes(config).values()))


def parameter_parts(config):
    """{part: number of its parameters}; the parts of all layers are taken together."""
    parts = {}
    for name, shape in parameter_shapes(config).items():
        part = name.removeprefix("layers/").split("/")[0]
        part = "norms" if part.endswith("norm") else part
        parts[part] = parts.get(part, 0) + math.prod(shape)
    return parts


def matmul_parameters(config):
    """Weights that multiply activations: with the head, even if tied; no lookup, norm or bias."""
    lookups = ["positions/table_PD"] + ([] if config.tied_embedding else ["embed/table_VD"])
    shapes = parameter_shapes(config).items()
    return sum(math.prod(s) for name, s in shapes if name not in lookups and not _is_vector(name))


def training_flops_per_token(config, sequence_length, convention="causal"):
    """FLOPs of forward and backward pass for one token, nothing recomputed.

    causal: 6 * matmul_parameters + 6 * L * N * H * T: what the products need, a token seeing half
    its sequence.
    palm: 6 * parameter_count + 12 * L * N * H * T (arXiv:2204.02311, appendix B).
    chinchilla: 6 * parameter_count, the "6ND" (arXiv:2203.15556).
    kaplan: 6 * parameters other than embeddings and head (arXiv:2001.08361).
    """
    assert convention in CONVENTIONS, convention
    attention = config.num_layers * config.num_heads * config.head_width * sequence_length
    if convention == "causal":
        return 6 * matmul_parameters(config) + 6 * attention
    if convention == "palm":
        return 6 * parameter_count(config) + 12 * attention
    if convention == "chinchilla":
        return 6 * parameter_count(config)
    parts = parameter_parts(config)
    return 6 * sum(parts[part] for part in parts if part not in ("embed", "positions", "head"))


def forward_flops_per_token(config, sequence_length):
    """FLOPs of the forward pass for one token of a whole sequence: a third of training's."""
    return training_flops_per_token(config, sequence_length) // 3


def decode_flops_per_token(config, context):
    """FLOPs to generate one token after `context` others, with a cache."""
    attention = config.num_layers * config.num_heads * config.head_width * context
    return 2 * matmul_parameters(config) + 4 * attention


def parameters_per_device(config, fsdp=1, tensor=1):
    """Parameters that one device of a mesh keeps, by the table of lm/mesh.py.

    fsdp divides D of all matrices; tensor divides N, F, V, and K where it can; data divides none.
    Scales and biases of width D are copied.
    """
    divided = {"D": fsdp, "N": tensor, "F": tensor, "V": tensor}
    divided["K"] = tensor if config.num_kv_heads % tensor == 0 else 1
    total = 0
    for name, shape in parameter_shapes(config).items():
        parts = math.prod(
            1 if dim == "D" and _is_vector(name) else divided.get(dim, 1) for dim in _dims(name)
        )
        total += math.prod(shape) // parts
    return total


def state_bytes(config, fsdp=1, tensor=1):
    """Bytes that a device keeps in a training step with AdamW, activations and buffers apart."""
    size = parameters_per_device(config, fsdp, tensor) * ITEM_BYTES[config.param_dtype]
    return {"parameters": size, "gradients": size, "adam_moments": 2 * size}


def checkpoint_bytes(config):
    """Bytes of one checkpoint before compression: parameters and both moments."""
    return 3 * parameter_count(config) * ITEM_BYTES[config.param_dtype]


def activation_bytes(config, tokens, logits_tokens, tensor=1):
    """Activations that every way of training keeps at least: a floor, not an estimate.

    layer_inputs: what enters each layer, (L, tokens, D) in the compute dtype; with remat="full"
    that is all that layers keep. logits: one float32 copy of them. tokens: of one device and one
    accumulation step; logits_tokens: as many of them as have their logits at one time.
    """
    width = ITEM_BYTES[config.compute_dtype]
    return {
        "layer_inputs": config.num_layers * tokens * config.d_model * width,
        "logits": logits_tokens * config.vocab_size * 4 // tensor,
    }


def cache_bytes_per_token(config):
    """Keys and values of one token in all layers, in the compute dtype."""
    width = ITEM_BYTES[config.compute_dtype]
    return 2 * config.num_layers * config.num_kv_heads * config.head_width * width
