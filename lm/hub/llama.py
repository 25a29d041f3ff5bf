"""Llama 1 to 3 as Hugging Face keeps it: LlamaForCausalLM; the rows that others share with it.

arXiv:2302.13971, 2307.09288 and 2407.21783. Its matrices are Linear's, (out, in), and heads are
rotated in halves, as ours are. Meta's own files rotate neighbours: they are another format.
"""

from lm.hub.family import HEADS_DIVIDE, Family
from lm.hub.keys import ACTIVATIONS, Key, Rope, altered
from lm.hub.tensors import attention, linear, matrix, norm, plain

LAYER = "model.layers.{layer}."


def sizes(vocab_size, length, width, layers, heads, kv_heads, hidden, **others):
    """Keys of sizes, by what is meant where config.json leaves them out. kv_heads: None for as many
    as heads; others: {name in config.json: default}.
    """
    every = (lambda model: model["num_heads"]) if kv_heads is None else kv_heads
    rows = (
        Key("vocab_size", "vocab_size", vocab_size),
        Key("max_position_embeddings", "max_positions", length),
        Key("hidden_size", "d_model", width),
        Key("num_hidden_layers", "num_layers", layers),
        Key("num_attention_heads", "num_heads", heads),
        Key("num_key_value_heads", "num_kv_heads", every),
        Key("head_dim", "head_width", lambda model: model["d_model"] // model["num_heads"]),
        Key("intermediate_size", "d_ff", hidden),
        Key("hidden_act", "activation", "silu", ACTIVATIONS),
        Key("rms_norm_eps", "norm_eps", 1e-6),
        Key("initializer_range", "initializer_std", 0.02),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("tie_word_embeddings", "tied_embedding", False),
    )
    return altered(rows, **others)


ATTENTION_BIAS = Key("attention_bias", ("qkv_bias", "attention_output_bias"), False)
ALWAYS = {"position": "rope", "norm": "rms_norm", "norm_bias": False, "gated": True}
# What a model does not have of these, as norms of queries and keys, is in none of its files.
ENDS = (
    plain("model.embed_tokens.weight", "embed/table_VD"),
    *norm("model.norm", "final_norm"),
    matrix("lm_head.weight", "head/kernel_DV"),
)
PRE_NORMS = (
    *norm(LAYER + "input_layernorm", "layers/attention_norm"),
    *norm(LAYER + "post_attention_layernorm", "layers/feedforward_norm"),
)
ATTENTION = (
    *attention(LAYER + "self_attn.", "layers/attention/"),
    plain(LAYER + "self_attn.q_norm.weight", "layers/attention/query_norm/scale_H"),
    plain(LAYER + "self_attn.k_norm.weight", "layers/attention/key_norm/scale_H"),
)


def gated(start, ours):
    """Rows of a feed-forward with a gate, whose parameters begin with `ours`."""
    return (
        *linear(f"{start}gate_proj", f"{ours}gate_DF"),
        *linear(f"{start}up_proj", f"{ours}up_DF"),
        *linear(f"{start}down_proj", f"{ours}down_FD"),
    )


FEEDFORWARD = gated(LAYER + "mlp.", "layers/feedforward/")
TENSORS = (*ENDS, *PRE_NORMS, *ATTENTION, *FEEDFORWARD)


def like_llama(model_type, architecture, keys, always=None, tensors=TENSORS, **others):
    """A Family that is Llama's but for what is given; always: over Llama's."""
    always = {**ALWAYS, **(always or {})}
    return Family(model_type, {architecture: {}}, keys, always, tensors, **others)


LLAMA = like_llama(
    "llama",
    "LlamaForCausalLM",
    (
        *sizes(32000, 2048, 4096, 32, 32, None, 11008),
        *(Rope(), ATTENTION_BIAS, Key("mlp_bias", "feedforward_bias", False)),
    ),
    limits=HEADS_DIVIDE,
)
