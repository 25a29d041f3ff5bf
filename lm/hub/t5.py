"""T5 1.0 (arXiv:1910.10683) and 1.1, UL2 (arXiv:2205.05131), and Switch (arXiv:2101.03961), which
has experts in place of some feed-forwards.
"""

import dataclasses

from lm.hub.family import Family
from lm.hub.keys import Key, altered, keys, scaled
from lm.hub.tensors import Tensor, attention, linear, matrix, norm, plain

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


def stack(name, start, last, rows):
    """Rows of the encoder or the decoder, whose parameters begin with `start` and whose
    feed-forward, the part `last` of a layer, has rows(its name, what its parameters begin with).
    """
    block, layers = f"{name}.block.{{layer}}.layer.", f"{start}layers/"
    # The layers share it; in the files it is the first one's.
    bias = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return (
        plain(bias, f"{start}positions/table_RN"),
        *norm(f"{block}0.layer_norm", f"{layers}attention_norm"),
        *attention(f"{block}0.SelfAttention.", f"{layers}attention/", "qkvo"),
        Tensor(f"{block}{last}.layer_norm.weight", {f"{layers}feedforward_norm/scale_D": "D"}),
        *rows(f"{block}{last}.", layers),
        *norm(f"{name}.final_layer_norm", f"{start}final_norm"),
    )


def tensors(rows):
    cross = "decoder.block.{layer}.layer.1."
    return (
        plain("shared.weight", "embed/table_VD"),
        *(*stack("encoder", "encoder/", 1, rows), *stack("decoder", "", 2, rows)),
        *norm(f"{cross}layer_norm", "layers/cross_attention_norm"),
        *attention(f"{cross}EncDecAttention.", "layers/cross_attention/", "qkvo"),
        matrix("lm_head.weight", "head/kernel_DV"),
    )


def dense(start, layers, name="DenseReluDense."):
    """Rows of a feed-forward, of two matrices or, gated, of three."""
    up, gate, down = (f"{layers}feedforward/{name}" for name in ("up_DF", "gate_DF", "down_FD"))
    return (
        Tensor(f"{start}{name}wi.weight", {up: "F,D"}, given={"gated": False}),
        Tensor(f"{start}{name}wi_0.weight", {gate: "F,D"}),
        Tensor(f"{start}{name}wi_1.weight", {up: "F,D"}, given={"gated": True}),
        Tensor(f"{start}{name}wo.weight", {down: "D,F"}),
    )


def sparse(start, layers):
    """Rows of a feed-forward and of experts, of which a layer has the one or the others."""
    expert = f"{start}mlp.experts.expert_{{expert}}."
    return (
        *dense(start, layers, "mlp."),
        *linear(f"{start}mlp.router.classifier", f"{layers}experts/router_DE"),
        matrix(f"{expert}wi.weight", f"{layers}experts/up_EDF"),
        matrix(f"{expert}wo.weight", f"{layers}experts/down_EFD"),
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
    tensors=tensors(dense),
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
    tensors=tensors(sparse),
)
