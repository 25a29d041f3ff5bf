"""Llama 1 to 3 as Hugging Face keeps it: LlamaForCausalLM; the rows that others share with it.

arXiv:2302.13971, 2307.09288 and 2407.21783. Its matrices are Linear's, (out, in), and heads are
rotated in halves, as ours are. Meta's own files rotate neighbours: they are another format.

And Cohere's Command R, which with one key head is PaLM (arXiv:2204.02311) but for its sizes:
attention and feed-forward read one norm, a layer norm without bias, and rotated pairs are
neighbours.
"""

import dataclasses

from lm.hub.family import HEADS_DIVIDE, STANDARD, Family
from lm.hub.keys import Rope, altered, keys, without
from lm.hub.tensors import rows

LAYER = "model.layers.{layer}."


def sizes(vocab_size, length, width, layers, heads, kv_heads, hidden, **others):
    """Keys of sizes, by what is meant where config.json leaves them out. kv_heads: None for as many
    as heads; others: {name in config.json: default}.
    """
    every = STANDARD["num_kv_heads"] if kv_heads is None else kv_heads
    rows = (
        *keys(vocab_size=vocab_size, max_position_embeddings=length, hidden_size=width),
        *keys(num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=every),
        *keys(head_dim=STANDARD["head_width"], intermediate_size=hidden, hidden_act="silu"),
        *keys(rms_norm_eps=1e-6, initializer_range=0.02, attention_dropout=0.0),
        *keys(tie_word_embeddings=False),
    )
    return altered(rows, **others)


ATTENTION_BIAS = keys(attention_bias=False)
ALWAYS = {"position": "rope", "norm": "rms_norm", "norm_bias": False, "gated": True}
# What a model does not have of these, as norms of queries and keys, is in none of its files.
ENDS = """
model.embed_tokens.weight embed/table_VD
model.norm                final_norm
lm_head.weight            head/kernel_DV
"""
PRE_NORMS = """
input_layernorm          attention_norm
post_attention_layernorm feedforward_norm
"""
ATTENTION = """
self_attn.q_proj        attention/query_DNH
self_attn.k_proj        attention/key_DKH
self_attn.v_proj        attention/value_DKH
self_attn.o_proj        attention/output_NHD
self_attn.q_norm.weight attention/query_norm/scale_H
self_attn.k_norm.weight attention/key_norm/scale_H
"""
GATED = """
gate_proj gate_DF
up_proj   up_DF
down_proj down_FD
"""
FEEDFORWARD = rows(LAYER + "mlp.", "layers/feedforward/", GATED)
TENSORS = (*rows("", "", ENDS), *rows(LAYER, "layers/", PRE_NORMS + ATTENTION), *FEEDFORWARD)


def like_llama(model_type, architecture, keys, always=None, tensors=TENSORS, **others):
    """A Family that is Llama's but for what is given; always: over Llama's."""
    always = {**ALWAYS, **(always or {})}
    return Family(model_type, {architecture: {}}, keys, always, tensors, **others)


LLAMA = like_llama(
    "llama",
    "LlamaForCausalLM",
    (
        *sizes(32000, 2048, 4096, 32, 32, None, 11008),
        Rope(),
        *ATTENTION_BIAS,
        *keys(mlp_bias=False),
    ),
    limits=HEADS_DIVIDE,
)


def rotated(row):
    """The row of queries or keys with rotated pairs as neighbours."""
    (name, layout), *_ = row.parts.items()
    turns = name.startswith(("layers/attention/query", "layers/attention/key"))
    return dataclasses.replace(row, parts={name: layout.replace("H", "h") if turns else layout})


COHERE_SIZES = sizes(256000, 8192, 8192, 40, 64, None, 22528, tie_word_embeddings=True)
COHERE = like_llama(
    "cohere",
    "CohereForCausalLM",
    (
        *without(COHERE_SIZES, "rms_norm_eps"),
        *keys(layer_norm_eps=1e-5, logit_scale=0.0625),
        *(Rope(500_000.0), *ATTENTION_BIAS),
    ),
    {"norm": "layer_norm", "parallel_block": True},
    required={"use_qk_norm": False},
    tensors=tuple(rotated(row) for row in TENSORS),
)
