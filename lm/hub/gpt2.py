"""GPT-2 (Radford et al. 2019) as Hugging Face keeps it: GPT2LMHeadModel.

Its matrices are Conv1D's, (in, out), and query, key and value are columns of one. The hub's own
`gpt2` lacks the prefix and holds attention's masks as tensors.
"""

from lm.hub.family import ACTIVATIONS, Family, Key, Tensor

LAYER = "transformer.h.{layer}."

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    keys=(
        Key("vocab_size", "vocab_size", 50257),
        Key("n_positions", "max_positions", 1024),
        Key("n_embd", "d_model", 768),
        Key("n_layer", "num_layers", 12),
        Key("n_head", "num_heads", 12),
        Key("n_inner", "d_ff", lambda model: 4 * model["d_model"]),
        Key("activation_function", "activation", "gelu_tanh", ACTIVATIONS),
        Key("layer_norm_epsilon", "norm_eps", 1e-5),
        Key("initializer_range", "initializer_std", 0.02),
        Key("embd_pdrop", "embedding_dropout", 0.1),
        Key("attn_pdrop", "attention_dropout", 0.1),
        Key("resid_pdrop", "residual_dropout", 0.1),
        Key("tie_word_embeddings", "tied_embedding", True),
    ),
    always={
        "position": "learned",
        "norm": "layer_norm",
        "norm_bias": True,
        "gated": False,
        "qkv_bias": True,
        "attention_output_bias": True,
        "feedforward_bias": True,
        "num_kv_heads": lambda model: model["num_heads"],
        "head_width": lambda model: model["d_model"] // model["num_heads"],
        "scaled_residual_init": True,
    },
    required={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    limits={
        "n_head={num_heads} must divide n_embd={d_model}": lambda config: (
            config.d_model % config.num_heads == 0
        ),
    },
    tensors=(
        Tensor("transformer.wte.weight", {"embed/table_VD": "V,D"}),
        Tensor("transformer.wpe.weight", {"positions/table_PD": "P,D"}),
        Tensor(LAYER + "ln_1.weight", {"layers/attention_norm/scale_D": "D"}),
        Tensor(LAYER + "ln_1.bias", {"layers/attention_norm/bias_D": "D"}),
        Tensor(
            LAYER + "attn.c_attn.weight",
            {
                "layers/attention/query_DNH": "D,NH",
                "layers/attention/key_DKH": "D,KH",
                "layers/attention/value_DKH": "D,KH",
            },
            joined=1,
        ),
        Tensor(
            LAYER + "attn.c_attn.bias",
            {
                "layers/attention/query_bias_NH": "NH",
                "layers/attention/key_bias_KH": "KH",
                "layers/attention/value_bias_KH": "KH",
            },
        ),
        Tensor(LAYER + "attn.c_proj.weight", {"layers/attention/output_NHD": "NH,D"}),
        Tensor(LAYER + "attn.c_proj.bias", {"layers/attention/output_bias_D": "D"}),
        Tensor(LAYER + "ln_2.weight", {"layers/feedforward_norm/scale_D": "D"}),
        Tensor(LAYER + "ln_2.bias", {"layers/feedforward_norm/bias_D": "D"}),
        Tensor(LAYER + "mlp.c_fc.weight", {"layers/feedforward/up_DF": "D,F"}),
        Tensor(LAYER + "mlp.c_fc.bias", {"layers/feedforward/up_bias_F": "F"}),
        Tensor(LAYER + "mlp.c_proj.weight", {"layers/feedforward/down_FD": "F,D"}),
        Tensor(LAYER + "mlp.c_proj.bias", {"layers/feedforward/down_bias_D": "D"}),
        Tensor("transformer.ln_f.weight", {"final_norm/scale_D": "D"}),
        Tensor("transformer.ln_f.bias", {"final_norm/bias_D": "D"}),
        Tensor("lm_head.weight", {"head/kernel_DV": "V,D"}),
    ),
    prefix="transformer.",
    ignored=r"transformer\.h\.\d+\.attn\.(masked_)?bias",
)
