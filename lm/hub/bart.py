"""BART (arXiv:1910.13461) and Marian's translators (arXiv:1804.00344), which are the Transformer of
2017 (arXiv:1706.03762) but for the order of its sines and cosines.
"""

import dataclasses

from lm.hub.bert import POST
from lm.hub.family import HEADS_DIVIDE, Family
from lm.hub.keys import Key, altered, keys, scaled, shifted
from lm.hub.tensors import rows

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
STACK = """
embed_positions.weight positions/table_PD
layernorm_embedding    embedding_norm
layers.{layer}.self_attn.q_proj     layers/attention/query_DNH
layers.{layer}.self_attn.k_proj     layers/attention/key_DKH
layers.{layer}.self_attn.v_proj     layers/attention/value_DKH
layers.{layer}.self_attn.out_proj   layers/attention/output_NHD
layers.{layer}.self_attn_layer_norm layers/attention_residual_norm
layers.{layer}.fc1                  layers/feedforward/up_DF
layers.{layer}.fc2                  layers/feedforward/down_FD
layers.{layer}.final_layer_norm     layers/feedforward_residual_norm
"""
REST = """
model.shared.weight embed/table_VD
model.decoder.layers.{layer}.encoder_attn.q_proj     layers/cross_attention/query_DNH
model.decoder.layers.{layer}.encoder_attn.k_proj     layers/cross_attention/key_DKH
model.decoder.layers.{layer}.encoder_attn.v_proj     layers/cross_attention/value_DKH
model.decoder.layers.{layer}.encoder_attn.out_proj   layers/cross_attention/output_NHD
model.decoder.layers.{layer}.encoder_attn_layer_norm layers/cross_attention_residual_norm
lm_head.weight    head/kernel_DV
final_logits_bias head/fixed_bias_V=1,V
"""
STACKS = (*rows("model.encoder.", "encoder/", STACK), *rows("model.decoder.", "", STACK))
TENSORS = (*STACKS, *rows("", "", REST))
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
