"""Every key of a run, its default and the reason for it; a preset names only what differs.

Keys whose default is a placeholder (None) are derived once, by `lm.config.resolve`, from the rest
of the config and from the tokenizer; the resolved config is printed and saved as `config.json` in
the run's workdir. As a preset, `--config=configs/base.py` is all defaults.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def section(**keys):
    return ConfigDict(keys)


def base():
    """A new unlocked copy of every key at its default."""
    return section(
        model=section(
            stack="decoder",  # or encoder (a token sees all others), encoder_decoder
            vocab_size=placeholder(int),  # or more, for a mesh to divide; derived: the tokenizer's
            d_model=768,
            num_layers=12,
            num_encoder_layers=placeholder(int),  # of an encoder_decoder; derived: num_layers
            num_heads=12,
            num_kv_heads=placeholder(int),  # 1: multi-query; derived: num_heads, multi-head
            head_width=placeholder(int),  # derived: d_model / num_heads
            d_ff=placeholder(int),  # hidden units, of one branch if gated; derived: 4 * d_model
            # learned, sinusoid (sine and cosine interleaved), sinusoid_halves (first all sines),
            # rope, relative (Transformer-XL), buckets (T5), alibi or none.
            position="learned",
            max_positions=placeholder(int),  # rows of the table; derived: what the data needs
            position_offset=0,  # rows before that of position 0 (RoBERTa and BART: 2)
            position_pad_aware=False,  # padding takes no position (RoBERTa), if none are given
            position_buckets=32,
            position_max_distance=128,  # from which on all are in the last bucket
            token_types=0,  # rows of a table that is added by each token's type (BERT: 2); 0: none
            rope_theta=10_000.0,
            rope_theta_local=0.0,  # of local layers, then never scaled (Gemma 3); 0: as the others
            # To read longer texts than were trained on, rotate slower: none, linear (by
            # rope_factor), llama3 (only wavelengths that rope_original_positions do not hold
            # rope_high_frequency times) or yarn (from rope_beta_slow to rope_beta_fast turns in
            # rope_original_positions).
            rope_scaling="none",
            rope_factor=1.0,
            rope_original_positions=0,
            rope_low_frequency=1.0,
            rope_high_frequency=4.0,
            rope_beta_fast=32.0,
            rope_beta_slow=1.0,
            rope_truncate=True,
            # yarn: of cosines and sines; derived: 0.1 * ln(rope_factor) + 1, or 1 with rope_mscale.
            rope_attention_factor=placeholder(float),
            rope_mscale=0.0,  # yarn: scores * (0.1 * this * ln(rope_factor) + 1) ** 2 (DeepSeek)
            norm="layer_norm",  # or rms_norm
            norm_eps=1e-5,
            norm_bias=True,
            norm_offset=False,  # the scale is 1 + weight (Gemma)
            norm_placement="pre",  # (GPT-2); post (2017, BERT), sandwich (Gemma 2), output (OLMo 2)
            skip_first_norm=False,  # of attention, where embeddings are normed (ModernBERT)
            final_norm=True,  # needed wherever the residual stream itself is not normed
            embedding_norm=False,
            parallel_block=False,  # attention and feed-forward read the same norm (PaLM)
            activation="gelu_tanh",  # gelu (erf), relu, silu; gated only: clamped_silu (GPT-OSS)
            gated=False,  # act(gate(x)) * up(x) instead of act(up(x))
            qkv_bias=True,
            attention_output_bias=True,
            feedforward_bias=True,
            tied_embedding=True,  # one table embeds tokens and, transposed, gives the logits
            head="linear",  # or transform (a dense layer and a norm before it, BERT), none
            head_bias="none",  # or learned, fixed: kept and not trained (BART)
            pooler=False,  # a dense layer and tanh of the first token's state (BERT)
            next_sentence=False,  # what tells from it whether one text follows another (BERT)
            detector=False,  # what tells of each token whether it was replaced (ELECTRA)
            start_token=0,  # what the decoder of an encoder_decoder reads first
            embedding_scale=1.0,  # embeddings are multiplied by this (Gemma: sqrt(d_model)),
            logit_scale=1.0,  # and logits by this (PaLM)
            logit_cap=0.0,  # cap * tanh(logit / cap) (Gemma 2); 0: as they are
            num_experts=0,  # instead of one feed-forward (arXiv:1701.06538)
            experts_per_token=1,
            expert_d_ff=placeholder(int),  # hidden units of each; derived: d_ff
            shared_expert_d_ff=0,  # of one more that every token has; 0: none
            shared_expert_gate=False,  # weighs it
            dense_layers=0,  # the first so many have no experts;
            experts_every=1,  # of the others every n-th has, the n-th first
            router_score="softmax",  # over the experts, or sigmoid of each (DeepSeek V3)
            router_bias=False,
            router_selection_bias=False,  # in the choice alone; optim.router_bias_step moves it
            router_renormalise=False,  # divide the chosen experts' scores by their sum,
            router_scale=1.0,  # and multiply them by this
            router_groups=1,  # of experts,
            router_groups_kept=1,  # of which only the best are chosen from:
            router_group_score="max",  # by their best, or top2: by the sum of their two best
            router_jitter=0.0,  # training multiplies its input by uniform noise in 1 +- this
            expert_capacity=0,  # tokens of a sequence that it takes, the first come; 0: all
            # The same as a multiple of sequence_length * experts_per_token / num_experts.
            expert_capacity_factor=0.0,
            mtp_depth=0,  # modules that predict one more token ahead (DeepSeek V3): 0 or 1
            # normal, truncated_normal, fan_in, glorot or t5 (fan_in, but for queries, which take
            # the scale that T5's scores lack, and the embedding: 1).
            initializer="normal",
            initializer_std=0.02,  # of the first two
            # The std of what writes to the residual stream over sqrt(2 * num_layers) (GPT-2).
            scaled_residual_init=True,
            # Off: a run of one or few epochs over its data does not need it.
            embedding_dropout=0.0,
            attention_dropout=0.0,
            residual_dropout=0.0,
            activation_dropout=0.0,  # after the feed-forward's activation (T5)
            final_dropout=0.0,  # after the last norm (T5)
            attention_scale=placeholder(float),  # of scores; derived: 1 / sqrt(head_width)
            attention_cap=0.0,  # cap * tanh(score / cap) (Gemma 2); 0: as they are
            attention_sinks=False,  # a learned logit of each head that gives nothing (GPT-OSS)
            query_key_norm="none",  # or head (of each head, Qwen3), full (of all, OLMo 2)
            attention_pattern="full",  # or "local", or what layers repeat, as "local,full"
            window=0,  # keys that a local query sees, its own too; in an encoder half on each side
            global_attention=False,  # some tokens, by their own projections, see all (Longformer)
            prefix_attention=False,  # a prompt, or an objective's source, is read both ways
            kv_latent=0,  # width of the latent of keys and values (DeepSeek V2); 0: none
            query_latent=0,  # of the latent of queries; 0: they come from the residual stream
            rope_width=placeholder(int),  # the rotated last part of a head; derived: head_width
            value_width=placeholder(int),  # derived: head_width
            attention_backend="plain",  # a name in lm.nn.attention.BACKENDS
            param_dtype="float32",  # and of moments; float64 is for proofs, with JAX_ENABLE_X64
            # Of matrix products; bfloat16 is what TPUs and GPUs are fast at. Norms, softmax and
            # loss are never below float32.
            compute_dtype="float32",
            scan_layers=True,  # compile one layer and loop: fast at any depth; same numbers
            # What the backward pass recomputes: none, dots (all but matrix products), full (each
            # layer whole), or full but for those of layer_input, query, key, value, attention (what
            # heads give), gate and up that are named, as "query,key,value".
            remat="none",
            offload="",  # those that wait in the host's memory, as "layer_input" (TPUs and GPUs)
            # With remat=full and mesh.tensor=1: parts of the hidden units that are computed one
            # after the other, fewer if so many are not equal. Of 4, a fourth of their memory; but
            # weights are gathered while nothing else is computed.
            feedforward_pieces=1,
        ),
        objective=section(
            # causal, masked, span_corruption, denoising, prefix, ul2, contrastive or replaced; or a
            # mixture of those with batches alike, "span_corruption=3,prefix=1".
            kind="causal",
            mask_rate=0.15,  # masked, replaced: the share of tokens that are predicted;
            mask_token_share=0.8,  # of these the share that becomes the mask,
            random_token_share=0.1,  # and another token; the rest stay (BERT)
            static_masks=0,  # of each text, used in turn (BERT: 10); 0: new ones in every epoch
            whole_words=False,
            next_sentence=False,  # pairs of texts, of which the second follows the first or not
            noise_rate=0.15,  # span_corruption, infilling: the share of tokens in spans,
            mean_span=3.0,  # and their length
            # denoising: any of permutation, infilling, deletion, rotation, masking, in this order.
            noise="permutation,infilling",
            pooling="first",  # contrastive: what stands for a text; or mean, pooler
            temperature=0.05,  # contrastive: what similarities are divided by (SimCSE)
            detection_loss=50.0,  # replaced: its weight, beside that of filling masks (ELECTRA)
            # Tokens of the vocabulary per step of the cross-entropy, so that logits (batch,
            # sequence, vocabulary) never exist, nor the head gathered whole. 0: all at once, which
            # is faster where it fits.
            logits_chunk=0,
            label_smoothing=0.0,
            z_loss=0.0,  # times mean(log Z squared), which keeps logits from drifting (PaLM: 1e-4)
            # Of a model with experts, added to the loss: num_experts * sum of (share of tokens *
            # mean probability) over all layers together (Switch),
            router_aux_loss=0.0,
            router_sequence_loss=0.0,  # the same within each sequence and layer (DeepSeek V3),
            router_z_loss=0.0,  # and the mean squared log Z of the router (ST-MoE)
            mtp_loss=0.0,  # weight of the loss of model.mtp_depth
        ),
        data=section(
            # A text file, a folder of them, JSONL, any of them .gz. Empty: the documentation and
            # source of the running Python's standard library, which every machine has.
            path="",
            weights="",  # "3,1": path is as many sources, "a.txt,b/", mixed in these proportions
            validation_path="",  # a second path to evaluate on; empty: a part of the first,
            validation_fraction=0.1,  # the end of a single file, whole documents of many
            text_key="text",  # the member of a JSONL object that holds the text
            # bpe (byte-level), wordpiece (BERT) or unigram (T5), trained on the training split;
            # bytes, characters, or the path of a tokenizer.json.
            tokenizer="bpe",
            # Of one trained here: end, mask (with what goes with it) or sentinels. Empty: end for
            # bpe, mask for wordpiece, sentinels for unigram.
            special_tokens="",
            tokenizer_size=4096,  # of one trained here
            batch_size=8,  # sequences per update, over all devices and all accumulation steps
            sequence_length=256,
            target_length=0,  # of an encoder_decoder's decoder; 0: as the objective needs
            order="shuffled",  # or contiguous: rows go on where they stopped, for memories
            separate_documents=True,  # attention and positions end with one; off: a stream (GPT-2)
            prefetch=4,  # batches prepared ahead by a background thread
            # Token stores, shared by runs and, at a gs:// or s3:// URL, by machines, which copy
            # them to ~/.cache/lm. Empty: $LM_CACHE, or else ~/.cache/lm.
            cache="",
        ),
        # Devices along each axis; -1 in one of them takes what is left.
        mesh=section(
            data=-1,  # copies of the model, each with its part of the batch
            fsdp=1,  # as data, but weights and moments are divided too, and gathered by the layer
            tensor=1,  # heads, hidden units, vocabulary and, between sublayers, positions divided
            # The same over slices (TPUs) or hosts, which a slower network connects: an axis has as
            # many devices as its size within a slice times this. -1: the slices there are.
            dcn_data=1,
            dcn_fsdp=1,
            dcn_tensor=1,
        ),
        optim=section(
            peak_lr=6e-4,
            warmup_steps=100,
            # Constant, cosine, linear, inverse_sqrt or wsd (stable, then decay), after a warm-up.
            schedule="cosine",
            decay_steps=placeholder(int),  # set it to lengthen a run; derived: train.num_steps
            final_lr_fraction=0.1,  # where it ends, of peak_lr
            cooldown_fraction=0.2,  # wsd: the last part of decay_steps that decays
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            weight_decay=0.1,
            decay="matrices",  # (all but norms and biases), kernels (nor the embeddings) or all
            # Adam's moments divided over data too, where weights are copied (ZeRO-1,
            # arXiv:1910.02054): gradients are scattered and weights gathered once in a step.
            shard_moments=False,
            offload_moments=False,  # to the host's memory, fetched in each step (TPUs and GPUs)
            clip_norm=1.0,  # largest norm of the whole gradient; 0: never clipped
            router_bias_step=0.0,  # up for experts with less than their share, down for others
        ),
        train=section(
            num_steps=1000,
            seed=0,
            accumulation_steps=1,  # parts of a batch, run in turn, and the gradients summed
            max_skipped_steps=10,  # in a row, for a loss or gradient not finite, that stop the run
            # A loss that is so many median absolute deviations above the median of the last
            # spike_window (at most 128) steps takes the run back to its last checkpoint, from where
            # it leaves out the last spike_skip batches, up to that step's. 0: never.
            spike_threshold=0.0,
            spike_window=128,
            spike_skip=1,
            deterministic=True,  # bits on GPUs need slower kernels; TPUs and CPUs give them anyway
        ),
        metrics=section(
            every_steps=10,
            # A jax.profiler trace of steps profile_start to profile_stop (exclusive). Both 0: none.
            profile_start=0,
            profile_stop=0,
            tensorboard=False,
            wandb_project="",  # of Weights & Biases; empty: none
        ),
        evaluate=section(every_steps=0),  # 0: never; else after the last step too
        checkpoint=section(
            every_steps=100,  # and after the last; 0: only that, and on SIGTERM or Ctrl-C
            keep_last=2,
            keep_best=1,  # besides the last, by eval/loss
            keep_every_steps=0,  # besides these, every n-th step is kept for ever; 0: none
            # Host memory that copies of arrays may take while they are written, GB for each
            # process. A bound below a process's part of the state makes the run wait for the disk;
            # the largest array's must fit. 0: no bound.
            host_gb=0.0,
        ),
        cluster=section(
            # Of many processes: how long each waits for all at the start, and then how long one may
            # be silent until the others end. As long as machines of one job may take to start.
            timeout_seconds=300,
            # Without a step for so long the run writes the stacks of its threads and exits with 75.
            # Must be longer than any step, evaluation or save. 0: never.
            watchdog_seconds=0,
        ),
    )


def presets(*functions):
    """The `get_config` of a preset file. `--config=configs/gpt2.py:small` calls `small()`; without
    a name, the first function.
    """
    named = {function.__name__: function for function in functions}

    def get_config(name=None):
        name = name or functions[0].__name__
        if name not in named:
            raise ValueError(f"there is no preset {name!r}; this file has: {', '.join(named)}.")
        return named[name]().lock()

    return get_config


get_config = presets(base)
