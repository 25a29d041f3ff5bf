"""GPT-1 (Radford et al. 2018), GPT-2 (2019) and GPT-Neo, whose alternating layers are GPT-3's.

Matrices of the first two are Conv1D's, (in, out), and query, key and value are columns of one. The
hub's own `gpt2` lacks the prefix and holds attention's masks as tensors.
"""

import dataclasses
from typing import Any

from lm.errors import require
from lm.hub.family import HEADS_DIVIDE, STANDARD, Family
from lm.hub.keys import ACTIVATIONS, Key, altered, found, keys, pattern_of
from lm.hub.tensors import rows

LAYER = "transformer.h.{layer}."
SIZES = (
    *keys(vocab_size=50257, n_positions=1024, n_embd=768, n_layer=12, n_head=12),
    *keys(layer_norm_epsilon=1e-5, initializer_range=0.02, tie_word_embeddings=True),
    *keys(embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1),
)
ALWAYS = {"position": "learned", "norm": "layer_norm", "norm_bias": True}
ALWAYS |= dict.fromkeys(("qkv_bias", "attention_output_bias", "feedforward_bias"), True)
CONV1D = """
attn.c_attn.weight attention/query_DNH=D,NH attention/key_DKH=D,KH attention/value_DKH=D,KH joined=1
attn.c_attn.bias   attention/query_bias_NH=NH attention/key_bias_KH=KH attention/value_bias_KH=KH
attn.c_proj.weight attention/output_NHD=NH,D
attn.c_proj.bias   attention/output_bias_D
mlp.c_fc.weight    feedforward/up_DF=D,F
mlp.c_fc.bias      feedforward/up_bias_F
mlp.c_proj.weight  feedforward/down_FD=F,D
mlp.c_proj.bias    feedforward/down_bias_D
"""
ENDS = """
transformer.wte.weight embed/table_VD
transformer.wpe.weight positions/table_PD
transformer.ln_f       final_norm
lm_head.weight         head/kernel_DV
"""
GPT_ENDS = """
transformer.tokens_embed.weight    embed/table_VD
transformer.positions_embed.weight positions/table_PD
lm_head.weight                     head/kernel_DV
"""
PRE_NORMS = """
ln_1 attention_norm
ln_2 feedforward_norm
"""
POST_NORMS = """
ln_1 attention_residual_norm
ln_2 feedforward_residual_norm
"""
NEO = """
attn.attention.q_proj   attention/query_DNH
attn.attention.k_proj   attention/key_DKH
attn.attention.v_proj   attention/value_DKH
attn.attention.out_proj attention/output_NHD
mlp.c_fc                feedforward/up_DF
mlp.c_proj              feedforward/down_FD
"""


GPT2 = Family(
    model_type="gpt2",
    architectures={"GPT2LMHeadModel": {}},
    keys=(*SIZES, *keys(n_inner=STANDARD["d_ff"], activation_function="gelu_tanh")),
    always={**ALWAYS, "scaled_residual_init": True},
    required={"add_cross_attention": False, "scale_attn_weights": True}
    | {"scale_attn_by_inverse_layer_idx": False},
    limits=HEADS_DIVIDE,
    tensors=(*rows("", "", ENDS), *rows(LAYER, "layers/", PRE_NORMS + CONV1D)),
    prefix="transformer.",
    ignored=r"transformer\.h\.\d+\.attn\.(masked_)?bias",
)

GPT = dataclasses.replace(
    GPT2,
    model_type="openai-gpt",
    architectures={"OpenAIGPTLMHeadModel": {}},
    keys=(
        *altered(SIZES, vocab_size=40478, n_positions=512),
        # Its "gelu" is the tanh form.
        Key("afn", "activation", "gelu_tanh", {**ACTIVATIONS, "gelu": "gelu_tanh"}),
    ),
    always={**ALWAYS, "norm_placement": "post", "final_norm": False},
    required={},
    tensors=(*rows("", "", GPT_ENDS), *rows(LAYER, "layers/", POST_NORMS + CONV1D)),
)


@dataclasses.dataclass(frozen=True)
class Alternation:
    """GPT-Neo's layers: [[["global", "local"], 12]] is 12 times the two, one after the other."""

    names = ("attention_types", "window_size")

    def read(self, flat, model):
        kinds: Any = flat.get("attention_types") or [[["global", "local"], 12]]
        width = found(flat, "window_size", 256, int)
        try:
            names = [name for group, times in kinds for _ in range(times) for name in group]
        except (TypeError, ValueError):
            names = []
        count = model["num_layers"]
        told = f"attention_types={kinds!r} must list global or local for {count} layers"
        known = len(names) == count and {*names} <= {"global", "local"}
        require(known, f"{told}, as [[names, times], ...].")
        local = [name == "local" for name in names]
        return {"attention_pattern": pattern_of(local), "window": width if any(local) else 0}

    def write(self, config):
        names = ["local" if layer.local else "global" for layer in config.layers()]
        return {"attention_types": [[names, 1]], "window_size": config.window or 256}


GPT_NEO = dataclasses.replace(
    GPT,
    model_type="gpt_neo",
    architectures={"GPTNeoForCausalLM": {}},
    keys=(
        *keys(vocab_size=50257, max_position_embeddings=2048, hidden_size=2048, num_layers=24),
        *keys(num_heads=16, intermediate_size=STANDARD["d_ff"], activation_function="gelu_tanh"),
        *keys(layer_norm_epsilon=1e-5, initializer_range=0.02, tie_word_embeddings=True),
        *keys(embed_dropout=0.0, attention_dropout=0.0, resid_dropout=0.0),
        Alternation(),
    ),
    always={**ALWAYS, "qkv_bias": False, "attention_scale": 1.0},
    tensors=(*rows("", "", ENDS), *rows(LAYER, "layers/", PRE_NORMS + NEO)),
    ignored=r"transformer\.h\.\d+\.attn\.attention\.(masked_)?bias",
)
