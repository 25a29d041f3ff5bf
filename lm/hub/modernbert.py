"""ModernBERT (arXiv:2412.13663): an encoder with rotary positions, and windows in two layers of
three. Query, key and value are rows of one matrix, gate and up of another.
"""

from lm.hub.bert import HEADLESS, MASKED, head
from lm.hub.family import HEADS_DIVIDE, Family
from lm.hub.keys import ACTIVATIONS, Key, Rope, Windows, checked
from lm.hub.tensors import linear, norm, plain

LAYER = "model.layers.{layer}."


def two_of_three(number, flat):
    """Whether a layer is local where config.json does not list them."""
    name = "global_attn_every_n_layers"
    return number % checked(name, flat.get(name, 3), int) != 0


MODERNBERT = Family(
    model_type="modernbert",
    architectures={
        "ModernBertForMaskedLM": MASKED,
        "ModernBertModel": {**HEADLESS, "pooler": False},
    },
    keys=(
        Key("vocab_size", "vocab_size", 50368),
        Key("max_position_embeddings", "max_positions", 8192),
        *(Key("hidden_size", "d_model", 768), Key("intermediate_size", "d_ff", 1152)),
        *(Key("num_hidden_layers", "num_layers", 22), Key("num_attention_heads", "num_heads", 12)),
        *(Key("norm_eps", "norm_eps", 1e-5), Key("norm_bias", "norm_bias", False)),
        Key("hidden_activation", "activation", "gelu", ACTIVATIONS),
        Key("classifier_activation", "activation", "gelu", ACTIVATIONS),
        Key("attention_bias", ("qkv_bias", "attention_output_bias"), False),
        Key("mlp_bias", "feedforward_bias", False),
        Key("classifier_bias", "feedforward_bias", False),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("embedding_dropout", "embedding_dropout", 0.0),
        Key("mlp_dropout", "activation_dropout", 0.0),
        Key("initializer_range", "initializer_std", 0.02),
        Key("tie_word_embeddings", "tied_embedding", True),
        Rope(160_000.0, theta_local=10_000.0, old=("global_rope_theta", "local_rope_theta")),
        Windows(128, two_of_three, theirs="local_attention"),
    ),
    always={
        "stack": "encoder",
        "position": "rope",
        "norm": "layer_norm",
        "embedding_norm": True,
        "skip_first_norm": True,
        "gated": True,
        "initializer": "truncated_normal",
        "scaled_residual_init": True,
    },
    # In the old schema both kinds of layers have scaled positions.
    required={"decoder_bias": True, "rope_scaling.type": None, "rope_scaling.rope_type": None},
    written={"pad_token_id": lambda config: None},
    limits=HEADS_DIVIDE,
    tensors=(
        plain("model.embeddings.tok_embeddings.weight", "embed/table_VD"),
        *norm("model.embeddings.norm", "embedding_norm"),
        *norm(LAYER + "attn_norm", "layers/attention_norm"),
        *linear(
            LAYER + "attn.Wqkv",
            "layers/attention/query_DNH",
            "layers/attention/key_DKH",
            "layers/attention/value_DKH",
        ),
        *linear(LAYER + "attn.Wo", "layers/attention/output_NHD"),
        *norm(LAYER + "mlp_norm", "layers/feedforward_norm"),
        *linear(
            LAYER + "mlp.Wi",
            "layers/feedforward/gate_DF",
            "layers/feedforward/up_DF",
        ),
        *linear(LAYER + "mlp.Wo", "layers/feedforward/down_FD"),
        *norm("model.final_norm", "final_norm"),
        *head("head.dense", "head.norm", "decoder", "decoder.bias"),
    ),
)
