"""T5 1.0 (arXiv:1910.10683) and 1.1, UL2 (arXiv:2205.05131), and Switch (arXiv:2101.03961), which
has experts in place of some feed-forwards.
"""

import dataclasses

from lm.hub.family import Family
from lm.hub.keys import Key, altered, keys, scaled
from lm.hub.tensors import rows

SIZES = (
    Key("num_layers", "num_encoder_layers", 6),
    *keys(num_decoder_layers=lambda model: model["num_encoder_layers"], tie_word_embeddings=True),
    *keys(vocab_size=32128, n_positions=512, d_model=512, d_kv=64, d_ff=2048, num_heads=8),
    *keys(relative_attention_num_buckets=32, relative_attention_max_distance=128),
    *keys(dropout_rate=0.1, layer_norm_epsilon=1e-6, decoder_start_token_id=0),
)
ALWAYS: dict[str, object] = {"stack": "encoder_decoder", "position": "buckets", "norm": "rms_norm"}
ALWAYS |= {"norm_bias": False, "attention_scale": 1.0, "initializer": "t5"}
COPIES = {f"{name}.embed_tokens.weight": "shared.weight" for name in ("encoder", "decoder")}
UNUSED = r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"


def scale(model):
    """Of the logits: the decoder's output is divided by a root, or it is not."""
    return model["d_model"] ** -0.5 if model["tied_embedding"] else 1.0


ENDS = """
shared.weight  embed/table_VD
lm_head.weight head/kernel_DV
"""
# The layers share the table; in the files it is the first one's.
STACK = """
block.0.layer.0.SelfAttention.relative_attention_bias.weight positions/table_RN
final_layer_norm final_norm
block.{layer}.layer.0.layer_norm      layers/attention_norm
block.{layer}.layer.0.SelfAttention.q layers/attention/query_DNH
block.{layer}.layer.0.SelfAttention.k layers/attention/key_DKH
block.{layer}.layer.0.SelfAttention.v layers/attention/value_DKH
block.{layer}.layer.0.SelfAttention.o layers/attention/output_NHD
"""
CROSS = """
layer_norm        cross_attention_norm
EncDecAttention.q cross_attention/query_DNH
EncDecAttention.k cross_attention/key_DKH
EncDecAttention.v cross_attention/value_DKH
EncDecAttention.o cross_attention/output_NHD
"""
DENSE = """
layer_norm feedforward_norm
DenseReluDense.wi.weight   feedforward/up_DF gated=0
DenseReluDense.wi_0.weight feedforward/gate_DF
DenseReluDense.wi_1.weight feedforward/up_DF gated=1
DenseReluDense.wo.weight   feedforward/down_FD
"""
# A layer has either the one or the others.
SPARSE = """
mlp.router.classifier                  experts/router_DE
mlp.experts.expert_{expert}.wi.weight experts/up_EDF
mlp.experts.expert_{expert}.wo.weight experts/down_EFD
"""
SPARSE += DENSE.replace("DenseReluDense", "mlp")


def tensors(feedforward):
    """Rows of a model with these in the last part of each layer."""
    layer = "block.{layer}.layer."
    return (
        *(*rows("", "", ENDS), *rows("encoder.", "encoder/", STACK), *rows("decoder.", "", STACK)),
        *rows(f"encoder.{layer}1.", "encoder/layers/", feedforward),
        *rows(f"decoder.{layer}1.", "layers/", CROSS),
        *rows(f"decoder.{layer}2.", "layers/", feedforward),
    )


PROJECTIONS = {"relu": "relu", "gated-gelu": "gelu_tanh", "gated-silu": "silu"}
T5 = Family(
    model_type="t5",
    architectures={"T5ForConditionalGeneration": {}},
    keys=(
        *SIZES,
        Key("feed_forward_proj", "gated", False, {n: n != "relu" for n in PROJECTIONS}, kind=str),
        Key("feed_forward_proj", "activation", "relu", PROJECTIONS),
        # Version 1.0 is tied and scaled, 1.1 neither; transformers 5 writes that all are tied.
        scaled("scale_decoder_outputs", "logit_scale", scale, -0.5),
    ),
    always=ALWAYS,
    written={"pad_token_id": lambda config: config.start_token},
    tensors=tensors(DENSE),
    copies=COPIES,
    prefix="",
    ignored=UNUSED,
)


def sparse_layers(name, ours):
    """A Key of how many layers of a stack have experts: the second of each so many."""
    return Key(
        name,
        "experts_every",
        lambda model: model[ours] // 3,
        to_ours=lambda count, model: model[ours] // count,
        to_theirs=lambda every, model: model[ours] // every,
    )


OFTEN = "lm has experts in all or in every second layer, not in every {experts_every}th"
SWITCH = dataclasses.replace(
    T5,
    model_type="switch_transformers",
    architectures={"SwitchTransformersForConditionalGeneration": {}},
    keys=(
        *altered(SIZES, d_model=768, num_layers=12, num_decoder_layers=12, num_heads=12),
        *keys(dense_act_fn="relu", num_experts=8, expert_capacity=64),
        *keys(router_jitter_noise=0.01, router_bias=False),
        sparse_layers("num_sparse_encoder_layers", "num_encoder_layers"),
        sparse_layers("num_sparse_decoder_layers", "num_layers"),
    ),
    always=ALWAYS | {"logit_scale": scale},
    required={"router_dtype": "float32"},
    limits={OFTEN: lambda config: config.experts_every <= 2},
    tensors=tensors(SPARSE),
)
