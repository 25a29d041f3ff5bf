"""ModernBERT (arXiv:2412.13663): an encoder with rotary positions, and windows in two layers of
three. Query, key and value are rows of one matrix, gate and up of another.
"""

from lm.hub.bert import HEADLESS, MASKED
from lm.hub.family import HEADS_DIVIDE, Family
from lm.hub.keys import Rope, Windows, found, keys
from lm.hub.tensors import rows

ENDS = """
model.embeddings.tok_embeddings.weight embed/table_VD
model.embeddings.norm embedding_norm
model.final_norm      final_norm
head.dense            head/transform_DM
head.norm             head/norm
decoder.weight        head/kernel_DV
decoder.bias          head/bias_V
"""
LAYERS = """
attn_norm attention_norm
attn.Wqkv attention/query_DNH attention/key_DKH attention/value_DKH
attn.Wo   attention/output_NHD
mlp_norm  feedforward_norm
mlp.Wi    feedforward/gate_DF feedforward/up_DF
mlp.Wo    feedforward/down_FD
"""
EVERY = ("global_attn_every_n_layers", 3, int)

MODERNBERT = Family(
    model_type="modernbert",
    architectures={
        "ModernBertForMaskedLM": MASKED,
        "ModernBertModel": HEADLESS | {"pooler": False},
    },
    keys=(
        *keys(vocab_size=50368, max_position_embeddings=8192, hidden_size=768),
        *keys(intermediate_size=1152, num_hidden_layers=22, num_attention_heads=12, norm_eps=1e-5),
        *keys(norm_bias=False, hidden_activation="gelu", classifier_activation="gelu"),
        *keys(attention_bias=False, mlp_bias=False, classifier_bias=False, attention_dropout=0.0),
        *keys(embedding_dropout=0.0, mlp_dropout=0.0, initializer_range=0.02),
        *keys(tie_word_embeddings=True),
        Rope(160_000.0, theta_local=10_000.0, old=("global_rope_theta", "local_rope_theta")),
        Windows(128, lambda layer, flat: layer % found(flat, *EVERY) > 0, theirs="local_attention"),
    ),
    always={"stack": "encoder", "position": "rope", "norm": "layer_norm"}
    | dict.fromkeys(("embedding_norm", "skip_first_norm", "gated", "scaled_residual_init"), True)
    | {"initializer": "truncated_normal"},
    # In the old schema both kinds of layers have scaled positions.
    required={"decoder_bias": True, "rope_scaling.type": None, "rope_scaling.rope_type": None},
    written={"pad_token_id": None},
    limits=HEADS_DIVIDE,
    tensors=(*rows("", "", ENDS), *rows("model.layers.{layer}.", "layers/", LAYERS)),
)
