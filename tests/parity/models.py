"""Tiny models of transformers, of every family: what the parity tests are run on."""

V = 53  # tokens
P = 80  # positions: a prompt and 64 tokens

SIZES = {
    "vocab_size": V,
    "max_position_embeddings": P,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
WIDE = {**GROUPED, "head_dim": 10}
GPT2 = {"vocab_size": V, "n_positions": P, "n_embd": 20, "n_layer": 3, "n_head": 4}
NEO = {
    "vocab_size": V,
    "max_position_embeddings": P,
    "hidden_size": 20,
    "num_layers": 4,
    "num_heads": 4,
    "window_size": 5,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 20,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 20,
}
QWEN_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 14}
LATENT = {
    **SIZES,
    "num_key_value_heads": 4,
    "kv_lora_rank": 10,
    "q_lora_rank": 11,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 6,
    "v_head_dim": 5,
    "moe_intermediate_size": 14,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
}
GROUP_LIMITED = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
MSCALE = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}

# {name: (model_type, keys of its configuration)}, and perhaps the class of the model
DECODERS = {
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied-relu-wide": (
        "gpt2",
        {**GPT2, "tie_word_embeddings": False, "activation_function": "relu", "n_inner": 36},
    ),
    "gpt2-one-layer": ("gpt2", {**GPT2, "n_layer": 1, "n_head": 1, "layer_norm_epsilon": 1e-3}),
    "gpt1": ("openai-gpt", GPT2),
    "gpt_neo": ("gpt_neo", {**NEO, "attention_types": [[["global", "local"], 2]]}),
    "gpt_neo-odd": (
        "gpt_neo",
        {**NEO, "attention_types": [[["local"], 1], [["global", "local", "local"], 1]]},
    ),
    "llama-mha": ("llama", SIZES),
    "llama-gqa": ("llama", {**GROUPED, "rms_norm_eps": 1e-3}),
    "llama-mqa-wide-heads": ("llama", {**SIZES, "num_key_value_heads": 1, "head_dim": 10}),
    "llama-gqa-tied-theta": (
        "llama",
        {
            **GROUPED,
            "head_dim": 4,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "llama-biases-gelu": (
        "llama",
        {**SIZES, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    ),
    "llama-linear": (
        "llama",
        {**GROUPED, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "llama-llama3": ("llama", {**WIDE, "rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", {**WIDE, "rope_parameters": {**YARN, "truncate": False}}),
    "mistral": ("mistral", {**WIDE, "sliding_window": 5}),
    "mistral-full": ("mistral", {**GROUPED, "sliding_window": None}),
    "mixtral": ("mixtral", {**WIDE, "num_local_experts": 4, "rms_norm_eps": 1e-5}),
    "mixtral-window": ("mixtral", {**GROUPED, "num_local_experts": 3, "sliding_window": 4}),
    "qwen2": (
        "qwen2",
        {
            **GROUPED,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2-full": ("qwen2", GROUPED),
    "qwen2_moe": (
        "qwen2_moe",
        {
            **GROUPED,
            **QWEN_EXPERTS,
            "num_hidden_layers": 4,
            "decoder_sparse_step": 2,
            "shared_expert_intermediate_size": 18,
        },
    ),
    "qwen3": ("qwen3", {**WIDE, "tie_word_embeddings": True}),
    "qwen3-biases": ("qwen3", {**WIDE, "attention_bias": True}),
    "qwen3_moe": ("qwen3_moe", {**WIDE, **QWEN_EXPERTS, "norm_topk_prob": True}),
    "qwen3_moe-window": (
        "qwen3_moe",
        {**WIDE, **QWEN_EXPERTS, "use_sliding_window": True, "sliding_window": 6},
    ),
    "gemma": ("gemma", WIDE),
    "gemma2": (
        "gemma2",
        {
            **WIDE,
            "sliding_window": 5,
            "query_pre_attn_scalar": 7,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **WIDE,
            "num_hidden_layers": 4,
            "sliding_window": 5,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 12,
            "rope_parameters": GEMMA3_ROPE,
        },
    ),
    "olmo2": ("olmo2", GROUPED),
    "palm": (
        "cohere",
        {**SIZES, "num_key_value_heads": 1, "head_dim": 8, "logit_scale": 24**-0.5},
    ),
    "cohere-biases": (
        "cohere",
        {**GROUPED, "attention_bias": True, "tie_word_embeddings": False},
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            **WIDE,
            "sliding_window": 5,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
    "deepseek_v2": (
        "deepseek_v2",
        {
            **LATENT,
            **GROUP_LIMITED,
            "topk_method": "group_limited_greedy",
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "deepseek_v2-lite": ("deepseek_v2", {**LATENT, "q_lora_rank": None, "n_shared_experts": 1}),
    "deepseek_v3": (
        "deepseek_v3",
        {**LATENT, **GROUP_LIMITED, "rope_parameters": MSCALE, "num_nextn_predict_layers": 0},
    ),
}
BERT = {**SIZES, "intermediate_size": 36}
ROBERTA = {**BERT, "type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}
LONGFORMER = {**ROBERTA, "attention_window": 6}
MODERN = {**SIZES, "num_hidden_layers": 4, "local_attention": 6, "pad_token_id": None}
MODERN_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
ENCODERS = {
    "bert": ("bert", BERT, "BertForPreTraining"),
    "bert-masked": (
        "bert",
        {**BERT, "hidden_act": "relu", "type_vocab_size": 3},
        "BertForMaskedLM",
    ),
    "bert-headless": ("bert", BERT, "BertModel"),
    "roberta": ("roberta", ROBERTA, "RobertaForMaskedLM"),
    "roberta-headless": ("roberta", {**ROBERTA, "type_vocab_size": 2}, "RobertaModel"),
    "longformer": ("longformer", LONGFORMER, "LongformerForMaskedLM"),
    "longformer-headless": (
        "longformer",
        {**LONGFORMER, "attention_window": [8, 8, 8]},
        "LongformerModel",
    ),
    "modernbert": (
        "modernbert",
        {**MODERN, "rope_parameters": MODERN_ROPE},
        "ModernBertForMaskedLM",
    ),
    "modernbert-biases": (
        "modernbert",
        {
            **MODERN,
            "attention_bias": True,
            "mlp_bias": True,
            "classifier_bias": True,
            "norm_bias": True,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "tie_word_embeddings": False,
        },
        "ModernBertForMaskedLM",
    ),
    "modernbert-headless": ("modernbert", MODERN, "ModernBertModel"),
}
T5 = {
    "vocab_size": V,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 36,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
UNTIED = {"tie_word_embeddings": False}
SWITCH = {
    **T5,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 2,
    "num_experts": 4,
}
BART = {
    "vocab_size": V,
    "max_position_embeddings": P,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 36,
    "decoder_ffn_dim": 36,
    "pad_token_id": 1,
}
MARIAN = {**BART, "pad_token_id": V - 1, "decoder_start_token_id": V - 1}
# Encoder-decoders.
PAIRS = {
    "t5": ("t5", T5),
    "t5-1.1": ("t5", {**T5, **UNTIED, "feed_forward_proj": "gated-gelu"}),
    "t5-tied-unscaled": (
        "t5",
        {
            **T5,
            "scale_decoder_outputs": False,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
        },
    ),
    "ul2": ("t5", {**T5, **UNTIED, "feed_forward_proj": "gated-silu"}),
    "switch": ("switch_transformers", SWITCH),
    "switch-full": ("switch_transformers", {**SWITCH, "expert_capacity": 3}),
    "switch-every-layer": (
        "switch_transformers",
        {**SWITCH, "num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 4}
        | {"router_bias": True, "dense_act_fn": "silu"},
    ),
    "bart": ("bart", BART),
    "bart-scaled": ("bart", {**BART, "scale_embedding": True, "activation_function": "relu"}),
    "transformer": (
        "marian",
        {**MARIAN, "activation_function": "relu", "scale_embedding": True},
    ),
    "marian": ("marian", {**MARIAN, "activation_function": "swish"}),
}
VARIANTS = {**DECODERS, **ENCODERS, **PAIRS}
CLASSES = {
    "bert": ("BertConfig", "BertForPreTraining"),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM"),
    "longformer": ("LongformerConfig", "LongformerForMaskedLM"),
    "modernbert": ("ModernBertConfig", "ModernBertForMaskedLM"),
    "t5": ("T5Config", "T5ForConditionalGeneration"),
    "switch_transformers": (
        "SwitchTransformersConfig",
        "SwitchTransformersForConditionalGeneration",
    ),
    "bart": ("BartConfig", "BartForConditionalGeneration"),
    "marian": ("MarianConfig", "MarianMTModel"),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "openai-gpt": ("OpenAIGPTConfig", "OpenAIGPTLMHeadModel"),
    "gpt_neo": ("GPTNeoConfig", "GPTNeoForCausalLM"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen2_moe": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "gemma": ("GemmaConfig", "GemmaForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM"),
    "cohere": ("CohereConfig", "CohereForCausalLM"),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM"),
    "deepseek_v2": ("DeepseekV2Config", "DeepseekV2ForCausalLM"),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
}
# Whose loss has the routers' too.
BALANCED = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss", "switch_transformers")
