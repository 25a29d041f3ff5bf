"""Gemma 1 to 3, the text models (arXiv:2403.08295, 2408.00118, 2503.19786), and OLMo 2
(arXiv:2501.00656), which has norms of what branches give too, and of all queries and keys.
"""

from lm.hub.family import HEADS_DIVIDE
from lm.hub.keys import ACTIVATIONS, Key, Rope, Windows, altered, found, without
from lm.hub.llama import ATTENTION, ATTENTION_BIAS, ENDS, FEEDFORWARD, LAYER, like_llama, sizes
from lm.hub.tensors import rows

ALWAYS = {"norm_offset": True, "embedding_scale": lambda model: model["d_model"] ** 0.5}
# "gelu" of the first releases means the tanh form.
TANH = {"gelu_pytorch_tanh": "gelu_tanh", **ACTIVATIONS}
ACTIVATION = Key("hidden_act", "activation", "gelu_tanh", {**TANH, "gelu": "gelu_tanh"})


def gemma_sizes(*defaults):
    rows = sizes(*defaults, head_dim=256, tie_word_embeddings=True)
    return without(rows, "hidden_act")


GEMMA = like_llama(
    "gemma",
    "GemmaForCausalLM",
    (*gemma_sizes(256000, 8192, 3072, 28, 16, 16, 24576), ACTIVATION, Rope(), *ATTENTION_BIAS),
    ALWAYS,
    required={"use_bidirectional_attention": None},
)

GEMMA2_KEYS = (
    *gemma_sizes(256000, 8192, 2304, 26, 8, 4, 9216),
    Key("hidden_activation", "activation", "gelu_tanh", TANH),
    *ATTENTION_BIAS,
    Key(
        "query_pre_attn_scalar",
        "attention_scale",
        256**-0.5,
        to_ours=lambda scalar, model: scalar**-0.5,
        to_theirs=lambda scale, model: max(1, round(scale**-2)),
        kind=int,
    ),
    Key("final_logit_softcapping", "logit_cap", 30.0, null=0.0),
    Key("attn_logit_softcapping", "attention_cap", 50.0, null=0.0),
)
SANDWICH = """
input_layernorm            attention_norm
post_attention_layernorm   attention_output_norm
pre_feedforward_layernorm  feedforward_norm
post_feedforward_layernorm feedforward_output_norm
"""
NORMED = (*rows("", "", ENDS), *rows(LAYER, "layers/", SANDWICH + ATTENTION), *FEEDFORWARD)
EVERY = ("sliding_window_pattern", 6, int)
GEMMA2 = like_llama(
    "gemma2",
    "Gemma2ForCausalLM",
    (*GEMMA2_KEYS, Rope(), Windows(4096, lambda layer, flat: layer % 2 == 0)),
    {**ALWAYS, "norm_placement": "sandwich"},
    required={"use_bidirectional_attention": None},
    limits=HEADS_DIVIDE,
    tensors=NORMED,
)

GEMMA3 = like_llama(
    "gemma3_text",
    "Gemma3ForCausalLM",
    (
        *altered(
            GEMMA2_KEYS,
            vocab_size=262208,
            max_position_embeddings=131072,
            final_logit_softcapping=0.0,
            attn_logit_softcapping=0.0,
        ),
        Rope(1_000_000.0, theta_local=10_000.0),
        Windows(4096, lambda layer, flat: (layer + 1) % found(flat, *EVERY) > 0),
    ),
    {**ALWAYS, "norm_placement": "sandwich", "query_key_norm": "head"},
    required={"use_bidirectional_attention": False},
    limits=HEADS_DIVIDE,
    tensors=NORMED,
)

FULL_NORMS = """
q_norm.weight query_norm/scale_NH=NH
k_norm.weight key_norm/scale_KH=KH
"""
OLMO2_SIZES = sizes(50304, 2048, 4096, 32, 32, None, 11008, rms_norm_eps=1e-5)
OLMO2 = like_llama(
    "olmo2",
    "Olmo2ForCausalLM",
    (*OLMO2_SIZES, Rope(), *ATTENTION_BIAS),
    {"norm_placement": "output", "query_key_norm": "full"},
    tensors=(*NORMED, *rows(LAYER + "self_attn.", "layers/attention/", FULL_NORMS)),
)
