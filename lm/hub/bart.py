"""BART (arXiv:1910.13461) and Marian's translators (arXiv:1804.00344), which are the Transformer of
2017 (arXiv:1706.03762) but for the order of its sines and cosines.
"""

import dataclasses

from lm.hub.bert import POST
from lm.hub.family import HEADS_DIVIDE, Family
from lm.hub.keys import Key, altered, keys, scaled, shifted
from lm.hub.tensors import Tensor, attention, linear, matrix, norm, plain

SIZES = (
    *keys(vocab_size=50265, d_model=1024, encoder_layers=12, decoder_layers=12),
    *keys(encoder_attention_heads=16, decoder_attention_heads=16, activation_function="gelu"),
    *keys(encoder_ffn_dim=4096, decoder_ffn_dim=4096, dropout=0.1, attention_dropout=0.0),
    *keys(activation_dropout=0.0, init_std=0.02, decoder_start_token_id=2),
    *keys(tie_word_embeddings=True),
    scaled("scale_embedding", "embedding_scale", 1.0, 0.5),
    # The first two rows of the table are never read.
    shifted("max_position_embeddings", "max_positions", 1026, 2),
)
ALWAYS = {**POST, "stack": "encoder_decoder", "norm_eps": 1e-5}
HEAD = {"head": "linear", "head_bias": "fixed"}
LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj")


def stack(name, start):
    """Rows of the encoder or the decoder, whose parameters begin with `start`."""
    layer, layers = f"{name}layers.{{layer}}.", f"{start}layers/"
    return (
        plain(f"{name}embed_positions.weight", f"{start}positions/table_PD"),
        *norm(f"{name}layernorm_embedding", f"{start}embedding_norm"),
        *attention(f"{layer}self_attn.", f"{layers}attention/", LINEARS),
        *norm(f"{layer}self_attn_layer_norm", f"{layers}attention_residual_norm"),
        *linear(f"{layer}fc1", f"{layers}feedforward/up_DF"),
        *linear(f"{layer}fc2", f"{layers}feedforward/down_FD"),
        *norm(f"{layer}final_layer_norm", f"{layers}feedforward_residual_norm"),
    )


CROSS = "model.decoder.layers.{layer}.encoder_attn"
TENSORS = (
    plain("model.shared.weight", "embed/table_VD"),
    *(*stack("model.encoder.", "encoder/"), *stack("model.decoder.", "")),
    *attention(f"{CROSS}.", "layers/cross_attention/", LINEARS),
    *norm(f"{CROSS}_layer_norm", "layers/cross_attention_residual_norm"),
    matrix("lm_head.weight", "head/kernel_DV"),
    Tensor("final_logits_bias", {"head/fixed_bias_V": "1,V"}),
)
SHARED = "model.shared.weight"
COPIES = {f"model.{name}.embed_tokens.weight": SHARED for name in ("encoder", "decoder")}

BART = Family(
    model_type="bart",
    # The hub's own are BartModels: all but the bias, which is 0 without.
    architectures={"BartForConditionalGeneration": HEAD, "BartModel": HEAD | {"head_bias": "none"}},
    keys=SIZES,
    always={**ALWAYS, "position_offset": 2, "embedding_norm": True},
    written={"pad_token_id": 1, "forced_eos_token_id": None},
    limits=HEADS_DIVIDE,
    tensors=TENSORS,
    copies=COPIES,
)

MARIAN = dataclasses.replace(
    BART,
    model_type="marian",
    architectures={"MarianMTModel": HEAD},
    keys=(
        *altered(SIZES[:-1], vocab_size=58101, decoder_start_token_id=58100),
        Key("decoder_vocab_size", "vocab_size", lambda model: model["vocab_size"]),
        *keys(max_position_embeddings=1024),
    ),
    always={**ALWAYS, "position": "sinusoid_halves"},
    required={"share_encoder_decoder_embeddings": True},
    written={"pad_token_id": lambda config: config.start_token, "forced_eos_token_id": None},
    # Sines and cosines, in old files.
    ignored=r"model\.(en|de)coder\.embed_positions\.weight",
)
