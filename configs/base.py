"""Every key of a run, its default and the reason for it; a preset names only what differs.

Keys whose default is a placeholder (None) are derived once, by `lm.config.resolve`, from the rest
of the config and from the tokenizer; the resolved config is printed and saved as `config.json` in
the run's workdir. As a preset, `--config=configs/base.py` is all defaults.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def section(**keys):
    return ConfigDict(keys)


def model():
    return section(
        # decoder, encoder (a token sees all others) or encoder_decoder.
        stack="decoder",
        # Rows of the embedding. Derived: the tokenizer's size. May be larger, for a mesh to divide.
        vocab_size=placeholder(int),
        d_model=768,
        num_layers=12,
        # Of an encoder_decoder. Derived: num_layers.
        num_encoder_layers=placeholder(int),
        num_heads=12,
        # Key and value heads: num_heads is multi-head, 1 multi-query, in between grouped-query
        # attention. Derived: num_heads.
        num_kv_heads=placeholder(int),
        # Width of one head. Derived: d_model / num_heads.
        head_width=placeholder(int),
        # Width of the feed-forward's hidden layer, of one branch if gated. Derived: 4 * d_model.
        d_ff=placeholder(int),
        # learned, sinusoid (sine and cosine interleaved), sinusoid_halves (first all sines), rope,
        # relative (Transformer-XL), buckets (T5), alibi or none.
        position="learned",
        # Rows of the learned position table. Derived: what the data needs.
        max_positions=placeholder(int),
        # Rows of it before that of position 0 (RoBERTa and BART: 2).
        position_offset=0,
        # Padding takes no position (RoBERTa), where positions are not given.
        position_pad_aware=False,
        # buckets: how many, and the distance from which on all are in the last.
        position_buckets=32,
        position_max_distance=128,
        # Rows of a table that is added by each token's type (BERT: 2). 0: none.
        token_types=0,
        rope_theta=10_000.0,
        # Of local layers, which are then never scaled (Gemma 3). 0: all layers rotate alike.
        rope_theta_local=0.0,
        # To read longer texts than were trained on, rotate slower: none, linear (by rope_factor),
        # llama3 (only wavelengths that rope_original_positions do not hold rope_high_frequency
        # times) or yarn (from rope_beta_slow to rope_beta_fast turns in rope_original_positions).
        rope_scaling="none",
        rope_factor=1.0,
        rope_original_positions=0,
        rope_low_frequency=1.0,
        rope_high_frequency=4.0,
        rope_beta_fast=32.0,
        rope_beta_slow=1.0,
        rope_truncate=True,
        # yarn: of cosines and sines. Derived: 0.1 * ln(rope_factor) + 1, or 1 with rope_mscale.
        rope_attention_factor=placeholder(float),
        # yarn: scores are multiplied by (0.1 * this * ln(rope_factor) + 1) squared (DeepSeek).
        rope_mscale=0.0,
        # layer_norm or rms_norm.
        norm="layer_norm",
        norm_eps=1e-5,
        norm_bias=True,
        # The scale is 1 + weight (Gemma).
        norm_offset=False,
        # pre (GPT-2, Llama), post (2017, BERT), sandwich (Gemma 2) or output (OLMo 2).
        norm_placement="pre",
        # The first layer's attention reads the stream as it is, which is normed (ModernBERT).
        skip_first_norm=False,
        # A norm after the last layer: needed wherever the residual stream itself is not normed.
        final_norm=True,
        embedding_norm=False,
        # Attention and feed-forward read the same norm and add to the same stream (PaLM).
        parallel_block=False,
        # gelu (erf), gelu_tanh, relu, silu or, gated only, clamped_silu (GPT-OSS).
        activation="gelu_tanh",
        # act(gate(x)) * up(x) instead of act(up(x)).
        gated=False,
        qkv_bias=True,
        attention_output_bias=True,
        feedforward_bias=True,
        # One table embeds tokens and, transposed, gives the logits.
        tied_embedding=True,
        # linear, transform (a dense layer and a norm before it, BERT) or none.
        head="linear",
        # none, learned, or fixed: kept and not trained (BART).
        head_bias="none",
        # A dense layer and tanh of the first token's state, and what tells from it whether the
        # second of two texts follows the first (BERT).
        pooler=False,
        next_sentence=False,
        # What tells of each token whether it was replaced (ELECTRA).
        detector=False,
        # What the decoder of an encoder_decoder reads first.
        start_token=0,
        # Embeddings are multiplied by this (Gemma: sqrt(d_model)), and logits by that (PaLM).
        embedding_scale=1.0,
        logit_scale=1.0,
        # Logits become cap * tanh(logit / cap) (Gemma 2). 0: as they are.
        logit_cap=0.0,
        # Experts instead of one feed-forward (arXiv:1701.06538). 0: none.
        num_experts=0,
        experts_per_token=1,
        # Width of an expert's hidden layer. Derived: d_ff.
        expert_d_ff=placeholder(int),
        # Width of an expert that every token has besides, and whether a gate weighs it. 0: none.
        shared_expert_d_ff=0,
        shared_expert_gate=False,
        # The first layers have no experts; of the others every n-th has, the n-th first.
        dense_layers=0,
        experts_every=1,
        # softmax over the experts, or sigmoid of each (DeepSeek V3).
        router_score="softmax",
        router_bias=False,
        # A bias that takes part in the choice, not in the weights, moved by optim.router_bias_step.
        router_selection_bias=False,
        # Divide the chosen experts' scores by their sum, and multiply them by router_scale.
        router_renormalise=False,
        router_scale=1.0,
        # Experts in groups, of which only the best are chosen from: by their best, or by the sum of
        # their two best: max or top2.
        router_groups=1,
        router_groups_kept=1,
        router_group_score="max",
        # The router's input is multiplied by uniform noise in 1 +- this, in training.
        router_jitter=0.0,
        # Tokens of a sequence that an expert takes, the first come; others pass by. 0: all of them.
        # As a number, or as a multiple of sequence_length * experts_per_token / num_experts.
        expert_capacity=0,
        expert_capacity_factor=0.0,
        # Modules that predict one more token ahead each (DeepSeek V3). 0 or 1.
        mtp_depth=0,
        # normal, truncated_normal, fan_in, glorot or t5 (fan_in, but for queries, which take the
        # scale that T5's scores lack, and the embedding: 1); the std is for the first two.
        initializer="normal",
        initializer_std=0.02,
        # Divide the std of what writes to the residual stream by sqrt(2 * num_layers) (GPT-2).
        scaled_residual_init=True,
        # Off: a run of one or few epochs over its data does not need it.
        embedding_dropout=0.0,
        attention_dropout=0.0,
        residual_dropout=0.0,
        # After the feed-forward's activation, and after the last norm (T5).
        activation_dropout=0.0,
        final_dropout=0.0,
        # What scores are multiplied with. Derived: 1 / sqrt(head_width).
        attention_scale=placeholder(float),
        # Scores become cap * tanh(score / cap) (Gemma 2). 0: as they are.
        attention_cap=0.0,
        # A learned logit for each head that takes probability and gives nothing (GPT-OSS).
        attention_sinks=False,
        # A norm of queries and keys: none, head (of each head, Qwen3) or full (of all, OLMo 2).
        query_key_norm="none",
        # Which layers see a window: "full", "local", or a pattern that repeats, as "local,full".
        attention_pattern="full",
        # Keys that a local layer's query sees, its own included; in an encoder half of it on either
        # side.
        window=0,
        # Tokens that see and are seen by all, with projections of their own (Longformer).
        global_attention=False,
        # A decoder reads its prompt, or what an objective gives as its source, in both directions.
        prefix_attention=False,
        # Latent attention (DeepSeek V2): width of the latent of keys and values. 0: none.
        kv_latent=0,
        # Of the latent that queries come from. 0: from the residual stream.
        query_latent=0,
        # The last part of a head's width, which is rotated, and values' width. Derived: head_width.
        rope_width=placeholder(int),
        value_width=placeholder(int),
        # Which attention function computes it: a name in lm.nn.attention.BACKENDS.
        attention_backend="plain",
        # Weights and Adam's moments are kept in this; float64 is for proofs, with JAX_ENABLE_X64.
        param_dtype="float32",
        # Matrix products run in this; bfloat16 is what TPUs and GPUs are fast at. Norms,
        # softmax and loss are never below float32.
        compute_dtype="float32",
        # Compile one layer and loop over it: compile time does not grow with depth. Unrolled
        # gives the same numbers.
        scan_layers=True,
        # What the backward pass recomputes: none, dots (all but matrix products), full (each layer
        # whole), or full but for those of layer_input, query, key, value, attention (what heads
        # give), gate and up that are named, as "query,key,value".
        remat="none",
        # Those that wait for it in the host's memory, as "layer_input" (TPUs and GPUs).
        offload="",
    )


def objective():
    return section(
        # causal, masked, span_corruption, denoising, prefix, ul2, contrastive or replaced; or a
        # mixture of those with batches alike, "span_corruption=3,prefix=1".
        kind="causal",
        # masked, replaced: the share of tokens that are predicted, and what becomes of them: the
        # mask, another token, or, for the rest, nothing (BERT).
        mask_rate=0.15,
        mask_token_share=0.8,
        random_token_share=0.1,
        # As many masks of each text, used in turn (BERT: 10). 0: new ones in every epoch.
        static_masks=0,
        whole_words=False,
        # Pairs of texts, of which the second follows the first or does not.
        next_sentence=False,
        # span_corruption and denoising's infilling: the share of tokens in spans, and their length.
        noise_rate=0.15,
        mean_span=3.0,
        # denoising: any of permutation, infilling, deletion, rotation, masking, in this order.
        noise="permutation,infilling",
        # contrastive: what stands for a text: first, mean or pooler; and what similarities are
        # divided by (SimCSE).
        pooling="first",
        temperature=0.05,
        # replaced: the weight of telling replaced tokens, beside that of filling masks (ELECTRA).
        detection_loss=50.0,
        # Tokens of the vocabulary per step of the cross-entropy, so that logits (batch, sequence,
        # vocabulary) never exist, nor the head gathered whole. 0: all at once, which is faster
        # where it fits.
        logits_chunk=0,
        label_smoothing=0.0,
        # Coefficient of mean(log Z squared), which keeps logits from drifting (PaLM: 1e-4).
        z_loss=0.0,
        # Of a model with experts, added to the loss: num_experts * sum of (share of tokens * mean
        # probability) over all layers together (Switch), the same within each sequence and layer
        # (DeepSeek V3), and the mean squared log Z of the router (ST-MoE).
        router_aux_loss=0.0,
        router_sequence_loss=0.0,
        router_z_loss=0.0,
        # Weight of the loss of model.mtp_depth.
        mtp_loss=0.0,
    )


def data():
    return section(
        # A text file, a folder of them, JSONL, any of them .gz. Empty: the documentation and
        # source of the running Python's standard library, which every machine has.
        path="",
        # "3,1": path is as many sources, "a.txt,b/", mixed in these proportions.
        weights="",
        # A second path to evaluate on. Empty: a part of the first.
        validation_path="",
        # Part held out if there is no validation_path: the end of a single file, whole
        # documents of many.
        validation_fraction=0.1,
        # The member of a JSONL object that holds the text.
        text_key="text",
        # bpe (byte-level), wordpiece (BERT) or unigram (T5), trained on the training split; bytes,
        # characters, or the path of a tokenizer.json.
        tokenizer="bpe",
        # Of a tokenizer trained here: end, mask (with what goes with it) or sentinels. Empty: end
        # for bpe, mask for wordpiece, sentinels for unigram.
        special_tokens="",
        # Size of a tokenizer trained here.
        tokenizer_size=4096,
        # Sequences per update, over all devices and all accumulation steps.
        batch_size=8,
        sequence_length=256,
        # Positions of an encoder_decoder's decoder. 0: as many as the objective needs.
        target_length=0,
        # shuffled, or contiguous: each row of the batch goes on where it stopped, for models
        # with memory.
        order="shuffled",
        # Attention and positions end with the document (segment ids). Off: the text is one long
        # stream (GPT-2).
        separate_documents=True,
        # Batches prepared ahead by a background thread.
        prefetch=4,
        # Token stores, shared by runs and, at a gs:// or s3:// URL, by machines, which copy them to
        # ~/.cache/lm. Empty: $LM_CACHE, or else ~/.cache/lm.
        cache="",
    )


def mesh():
    return section(
        # Devices along each axis; -1 in one of them takes what is left.
        data=-1,  # copies of the model, each with its part of the batch
        fsdp=1,  # as data, but weights and moments are divided too, and gathered a layer at a time
        tensor=1,  # heads, hidden units and vocabulary, and between sublayers positions, divided
        # The same over slices (TPUs) or hosts, which a slower network connects: an axis has as
        # many devices as its size within a slice times this. -1: the slices there are.
        dcn_data=1,
        dcn_fsdp=1,
        dcn_tensor=1,
    )


def optim():
    return section(
        peak_lr=6e-4,
        warmup_steps=100,
        # constant, cosine, linear, inverse_sqrt or wsd (warm-up, stable, decay); all after a
        # linear warm-up.
        schedule="cosine",
        # Where the schedule ends. Derived: train.num_steps. Set it to lengthen a run without
        # another schedule.
        decay_steps=placeholder(int),
        # The schedule ends at this part of peak_lr.
        final_lr_fraction=0.1,
        # wsd: the last part of decay_steps that decays.
        cooldown_fraction=0.2,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
        weight_decay=0.1,
        # What decays: matrices (all but norms and biases), kernels (nor the embeddings) or all.
        decay="matrices",
        # Adam's moments divided over data too, where weights are copied (ZeRO-1,
        # arXiv:1910.02054): gradients are scattered and weights gathered once in a step.
        shard_moments=False,
        # Moments in the host's memory, fetched in each step (TPUs and GPUs).
        offload_moments=False,
        # Largest norm of the whole gradient. 0: never clipped.
        clip_norm=1.0,
        # How far a selection bias moves each step, up for experts with less than their share.
        router_bias_step=0.0,
    )


def train():
    return section(
        num_steps=1000,
        seed=0,
        # A batch is run in this many parts, one after the other, and the gradients summed.
        accumulation_steps=1,
        # A step with a non-finite loss or gradient is skipped; after this many in a row the run
        # stops.
        max_skipped_steps=10,
        # A loss that is so many median absolute deviations above the median of the last
        # spike_window (at most 128) steps takes the run back to its last checkpoint; from there it
        # leaves out the last spike_skip batches, that step's being the last of them. 0: never.
        spike_threshold=0.0,
        spike_window=128,
        spike_skip=1,
        # Bits on GPUs need slower kernels; TPUs and CPUs give them anyway.
        deterministic=True,
    )


def metrics():
    return section(
        every_steps=10,
        # A jax.profiler trace of steps profile_start to profile_stop (exclusive). Both 0: none.
        profile_start=0,
        profile_stop=0,
        tensorboard=False,
        # A Weights & Biases project. Empty: none.
        wandb_project="",
    )


def evaluate():
    return section(
        # 0: never. The last step is evaluated too, unless this is 0.
        every_steps=0,
    )


def checkpoint():
    return section(
        # The last step is saved too. 0: only that, and on SIGTERM or Ctrl-C.
        every_steps=100,
        keep_last=2,
        # Besides the last, the best by eval/loss.
        keep_best=1,
        # Besides these, every n-th step is kept for ever. 0: none.
        keep_every_steps=0,
        # Host memory that copies of arrays may take while they are written, GB for each process. A
        # bound below a process's part of the state makes the run wait for the disk; the largest
        # array's must fit. 0: no bound.
        host_gb=0.0,
    )


def cluster():
    return section(
        # Of many processes: how long each waits for all at the start, and then how long one may be
        # silent until the others end. As long as machines of one job may take to start.
        timeout_seconds=300,
        # Without a step for so long the run writes the stacks of its threads and exits with 75.
        # Must be longer than any step, evaluation or save. 0: never.
        watchdog_seconds=0,
    )


SECTIONS = (model, objective, data, mesh, optim, train, metrics, evaluate, checkpoint, cluster)


def base():
    """A new unlocked copy of every key at its default."""
    return ConfigDict({function.__name__: function() for function in SECTIONS})


def presets(*functions):
    """The `get_config` of a preset file.

    `--config=configs/gpt2.py:small` calls `small()`; without a name, the first function.
    """
    named = {function.__name__: function for function in functions}

    def get_config(name=None):
        name = name or functions[0].__name__
        if name not in named:
            raise ValueError(f"there is no preset {name!r}; this file has: {', '.join(named)}.")
        return named[name]().lock()

    return get_config


get_config = presets(base)
