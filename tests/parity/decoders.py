"""Tiny models of transformers, of every decoder: what the parity tests are run on."""

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

# {name: (model_type, keys of its configuration)}
VARIANTS = {
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
CLASSES = {
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
BALANCED = ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
