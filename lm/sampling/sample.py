"""Text from a model: `generate`, many prompts and samples at once, on one device or a mesh."""

import dataclasses
import functools
import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.errors import RunError, require
from lm.mesh import ACTIVATIONS, BATCH, current_mesh, local, put, use_mesh
from lm.nn.cache import empty_cache, take_rows
from lm.nn.params import bind
from lm.sampling.choose import choose

# Lengths are padded to this times a power of two, so that few of them are compiled.
SHORTEST = 16
# By name: of other generators, the bits under vmap depend on the whole batch.
GENERATOR = "threefry2x32"
LOWEST_TEMPERATURE = 1e-30  # float32 has little below
ENDS = ("begin", "end")
NO_TABLE = 2**31 - 2  # the positions of a model without a table; one more is still an int32


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a model wrote after a prompt, without the end of text. text: None if the model has no
    tokenizer. ended: it stopped at the end of text, and not because it had its number of tokens.
    """

    text: str | None
    tokens: list[int]
    ended: bool


def generate(
    model,
    prompts,
    num_tokens,
    *,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    seed=0,
    num_samples=1,
    stop_at_end_of_text=True,
):
    """A list for each prompt of `num_samples` Samples of at most `num_tokens` tokens.

    model: an lm.model.LanguageModel. prompts: a text, or a list of texts or of lists of tokens. A
    text is the beginning of a document, after the end-of-text token if the tokenizer has one;
    tokens are taken as they are. temperature: 0 is greedy. top_k: 0 is off. top_p: 1 is off.
    The same seed gives the same samples: one depends on its prompt, the prompt's place in the list
    and its own number, and not on the other prompts, num_samples, num_tokens or the mesh.
    A decoder with prefix_attention reads its prompt in both directions. Of an encoder-decoder a
    prompt is the source: a text between the tokens that begin and end one, if the tokenizer has
    them, with names of special tokens, as of blanks, read as those; the sample is its target.
    A position table is no limit: when a prompt and its sample outgrow the max_positions rows, the
    last max_positions // 2 tokens are read anew from position 0, and so on. A longer prompt is read
    as if the model had written it: only its last part.
    Raises UserError for what cannot be generated, RunError for logits that are not finite.
    """
    check_settings(num_tokens, temperature, top_k, top_p, seed, num_samples)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    told = "an encoder writes no text; lm.fill(model, ...) fills the blanks of one."
    require(model.config.stack != "encoder", told)
    prompts = [_encoded(model, number, prompt) for number, prompt in enumerate(prompts)]
    if not prompts:
        return []
    vocab, end = _vocabulary(model)
    end = end if stop_at_end_of_text else None
    settings = {
        "end": -1 if end is None else end,
        "temperature": temperature or None,
        "top_p": None if top_p == 1 else top_p,
        "table": min(model.config.num_positions, NO_TABLE),
    }
    sizes = {"room": _padded(min(num_tokens, settings["table"])), "vocab": vocab, "top_k": top_k}
    rows = _rows(len(prompts), num_samples, num_tokens, _shards(model.mesh), seed)
    sources = None
    if model.config.stack == "encoder_decoder":
        sources, prompts = prompts, [[model.config.start_token]] * len(prompts)
    with use_mesh(model.mesh):
        texts = _continued(model, prompts, sources, rows, settings, sizes)
    samples = [[] for _ in prompts]
    for row, text in enumerate(texts[: len(prompts) * num_samples]):
        prompt = prompts[row // num_samples]
        ended = text[-1] == end
        tokens = text[len(prompt) : -1 if ended else None]
        sample = Sample(_text(model.tokenizer, prompt, tokens), tokens, ended)
        samples[row // num_samples].append(sample)
    return samples


def check_settings(num_tokens, temperature, top_k, top_p, seed, num_samples):
    """Raise UserError for what `generate` cannot take, whatever the model."""
    for name, value, least, most in (
        ("num_tokens", num_tokens, 1, 2**24),  # float32 holds all positions up to here
        ("num_samples", num_samples, 1, 2**24),
        ("top_k", top_k, 0, 2**31 - 1),
        ("seed", seed, 0, 2**32 - 1),
    ):
        told = f"it must be a whole number, {least} or more and at most {most}."
        whole = isinstance(value, numbers.Integral)
        require(whole and least <= value <= most, f"{name}={value!r} is not possible; {told}")
    told = f"it must be 0, which is greedy, or from {LOWEST_TEMPERATURE} up; 1 is the model's own."
    possible = temperature == 0 or LOWEST_TEMPERATURE <= temperature < math.inf
    require(possible, f"temperature={temperature} is not possible; {told}")
    require(0 < top_p <= 1, f"top_p={top_p} is not possible; it must be in (0, 1]; 1 is off.")


def _vocabulary(model):
    """(how many tokens there are, the end-of-text token or None)"""
    tokenizer, rows = model.tokenizer, model.config.vocab_size
    return (rows, None) if tokenizer is None else (min(tokenizer.size, rows), tokenizer.end_of_text)


def _encoded(model, number, prompt):
    """The tokens, a list of int, of prompts[number]."""
    name = f"prompts[{number}]"
    vocab, end = _vocabulary(model)
    if isinstance(prompt, str):
        require(model.tokenizer is not None, f"{name}: the model has no tokenizer; give tokens.")
        if model.config.stack == "encoder_decoder":
            tokens = framed(model.tokenizer, prompt)
        else:
            tokens = model.tokenizer.encode(prompt)
            tokens = tokens if end is None else np.append(end, tokens)
        told = f"{name} is empty, and the tokenizer has no end-of-text token to begin with"
        require(tokens.size, f"{told}; give a text.")
    else:
        tokens = np.asarray(prompt)
        listed = tokens.ndim == 1 and tokens.size and np.issubdtype(tokens.dtype, np.integer)
        told = f"{name}={prompt!r} is neither a text nor a list of one or more tokens."
        require(listed, told)
    for token in (tokens.min(), tokens.max()):
        told = f"{name} holds token {token}; the model's are 0 to {vocab - 1}."
        require(0 <= token < vocab, told)
    most = model.config.num_positions
    told = f"{name} of {tokens.size} tokens is longer than the model's {most} positions"
    require(model.config.stack == "decoder" or tokens.size <= most, f"{told}; shorten it.")
    return tokens.tolist()


def framed(tokenizer, text):
    """int32 tokens of a text with blanks, as encoders read it: with what begins and ends one."""
    ends = [[tokenizer.special[role]] if role in tokenizer.special else [] for role in ENDS]
    tokens = tokenizer.encode(text, special=True)
    return np.concatenate([ends[0], tokens, ends[1]]).astype(np.int32)


def _padded(length):
    return SHORTEST * 2 ** math.ceil(math.log2(max(1, length / SHORTEST)))


def _shards(mesh):
    """What the number of rows must be a multiple of. On a mesh a model takes one row for all's."""
    if mesh is None or mesh.size == 1:
        return 1
    return max(2, math.prod(mesh.shape[axis] for axis in BATCH))


def _left_padded(prompts, shards):
    """Texts as rows int32 (P, T), P a multiple of shards, which end together and so write the same
    place of the cache. Segment 0 is padding.
    """
    count = -(-len(prompts) // shards) * shards
    length = _padded(max(map(len, prompts)))
    tokens_PT, positions_PT, segments_PT = np.zeros((3, count, length), np.int32)
    for row in range(count):
        prompt = prompts[row % len(prompts)]
        tokens_PT[row, -len(prompt) :] = prompt
        positions_PT[row, -len(prompt) :] = range(len(prompt))
        segments_PT[row, -len(prompt) :] = 1
    return {"tokens": tokens_PT, "positions": positions_PT, "segments": segments_PT}


def _rows(num_prompts, num_samples, num_tokens, shards, seed):
    """What is to be written, a row for each sample of each prompt: B of them, a multiple of shards.
    number_B: of its prompt. prompt_B: the row of that, None if it is its own. sample_B3: what its
    randomness derives from. left_B1: how many tokens; 0 if it only fills the last shard.
    """
    used = num_prompts * num_samples
    row_B = np.arange(-(-used // shards) * shards)
    number_B, sample_B = row_B % used // num_samples, row_B % num_samples
    return {
        "number_B": number_B,
        "prompt_B": None if num_samples == 1 else number_B,
        "sample_B3": np.stack([0 * row_B + seed, number_B, sample_B], 1).astype(np.uint32),
        "left_B1": np.where(row_B[:, None] < used, num_tokens, 0).astype(np.int32),
    }


def _continued(model, prompts, sources, rows, settings, sizes):
    """Each row's prompt and what was written after it: B lists of tokens. sources: for each prompt
    what an encoder reads, or None. Each round is one program, in which every row writes until its
    own table is full, and then waits for the others: where it is read anew depends on itself alone.
    Without a table one round is all.
    """
    shards, end, table = _shards(model.mesh), settings["end"], settings["table"]
    texts = [prompts[number] for number in rows["number_B"]]
    windows = [_window(prompt, table) for prompt in prompts]
    while rows["left_B1"].any():
        rows["length_B1"] = np.array([[len(text)] for text in texts], np.int32)
        prefix = {"": _left_padded(windows, shards)}
        if sources is not None:
            prefix["source"] = _left_padded(sources, shards)
        written = _write(model.params, prefix, rows, settings, module=model.module, **sizes)
        if current_mesh() is not None:
            written = jax.device_put(written, NamedSharding(model.mesh, P()))
        tokens_BN, broken_B1 = map(np.asarray, written)
        if broken_B1.any():
            first = rows["number_B"][broken_B1.argmax()]
            told = f"the logits after prompts[{first}] are not finite"
            cause = "the weights are damaged, or their training diverged"
            raise RunError(f"{told}: {cause}; take the checkpoint of an earlier step.")
        new = [tokens_N[tokens_N >= 0].tolist() for tokens_N in tokens_BN]
        texts = [text + tokens for text, tokens in zip(texts, new, strict=True)]
        written_B1 = (tokens_BN >= 0).sum(1, keepdims=True)
        ended_B1 = np.array([[tokens[-1:] == [end]] for tokens in new])
        left_B1 = np.where(ended_B1, 0, rows["left_B1"] - written_B1).astype(np.int32)
        if sources is not None and len(sources) < len(texts):
            sources = [sources[number] for number in rows["number_B"]]
        rows = {**rows, "prompt_B": None, "left_B1": left_B1}
        # A row that is done only waits; it reads a token because each row must.
        pairs = zip(texts, left_B1, strict=True)
        windows = [_window(text, table) if left else text[-1:] for text, left in pairs]
    return texts


def _window(text, table):
    """The tokens of a text that are read: whenever they outgrow the table, its last half is left.
    It depends on the length alone, not on how much of the text is the prompt.
    """
    step = table + 1 - max(1, table // 2)
    return text[-(-max(0, len(text) - table) // step) * step :]


def _read(model, prefix, prompt_B, room):
    """(cache, logits (B, V) of the first token to write, lengths (B, 1)) after the prompts. The
    cache has room for `room` tokens more.
    """
    prefix = jax.tree.map(lambda x_PT: put(x_PT, "tokens"), prefix)
    rows = dict(prefix[""])
    tokens_PT, positions_PT = rows.pop("tokens"), rows["positions"]
    count, length = tokens_PT.shape
    cache = empty_cache(model.config, count, length + room)
    if model.config.prefix_attention:
        rows["prefix"] = rows["segments"]
    if "source" in prefix:
        source = dict(prefix["source"])
        memory, _ = model.encode(source.pop("tokens"), **source)
        cache["cross"] = model.remember(memory)
    hidden_PTD, cache, _ = model.hidden(tokens_PT, cache=cache, **rows)
    logits_PV = put(model.logits(hidden_PTD[:, -1:])[:, 0], "tokens")
    lengths_P1 = positions_PT[:, -1:] + 1
    if prompt_B is None:
        return cache, logits_PV, lengths_P1
    place = None if current_mesh() is None else ACTIVATIONS["tokens"]
    ours = (x.at[prompt_B].get(out_sharding=place) for x in (logits_PV, lengths_P1))
    return take_rows(cache, prompt_B), *ours


@functools.partial(jax.jit, static_argnames=("module", "room", "vocab", "top_k"))
def _write(params, prefix, rows, settings, *, module, room, vocab, top_k):
    """(tokens (B, room), broken (B, 1)): -1 after a row's end; broken if its logits are not finite.
    prefix: of `_left_padded`; rows: of `_rows`, and length_B1 of their texts. One program reads and
    writes, so that the cache never leaves it and is updated in place.
    """
    model = bind(module, params)
    cache, logits_BV, lengths_B1 = _read(model, prefix, rows["prompt_B"], room)
    choose_rows = _chooser(put(rows["sample_B3"], "tokens"), settings, vocab, top_k)
    none_B1 = jnp.zeros_like(lengths_B1)
    # The last token is not read.
    limit_B1 = jnp.minimum(put(rows["left_B1"], "tokens"), settings["table"] + 1 - lengths_B1)
    position_B1 = put(rows["length_B1"], "tokens")  # in the text, as randomness is the place's

    def write(state, logits_BV):
        n, ended_B1 = state["n"], state["ended_B1"]
        token_B1, broken_B1 = choose_rows(logits_BV, position_B1 + n)
        token_B1 = jnp.where(ended_B1, -1, token_B1)
        tokens_BN = jax.lax.dynamic_update_slice_in_dim(state["tokens_BN"], token_B1, n, 1)
        return {
            **state,
            "n": n + 1,
            "tokens_BN": tokens_BN,
            "ended_B1": ended_B1 | (token_B1 == settings["end"]) | (n + 1 == limit_B1),
            "broken_B1": broken_B1 & ~ended_B1,
            "last_B1": token_B1,
        }

    def advance(state):
        hidden_B1D, cache, _ = model.hidden(
            jnp.maximum(state["last_B1"], 0),
            positions=jnp.minimum(lengths_B1 + state["n"], settings["table"]) - 1,
            segments=none_B1 + 1,
            cache=state["cache"],
        )
        logits_BV = put(model.logits(hidden_B1D)[:, 0], "tokens")
        return write({**state, "cache": cache}, logits_BV)

    state = {
        "n": jnp.zeros((), jnp.int32),
        "tokens_BN": jnp.repeat(none_B1 - 1, room, 1),
        "ended_B1": limit_B1 == 0,
        "cache": cache,
    }
    state = jax.lax.while_loop(
        lambda state: ~state["ended_B1"].all() & ~state["broken_B1"].any(),
        advance,
        write(state, logits_BV),
    )
    return state["tokens_BN"], state["broken_B1"]


def _chooser(sample_B3, settings, vocab, top_k):
    """logits (B, V), positions (B, 1) to (next tokens, whether logits are not finite), (B, 1)."""

    def key(numbers):
        root = jax.random.key(numbers[0], impl=GENERATOR)
        return functools.reduce(jax.random.fold_in, numbers[1:], root)

    def choose_rows(logits_BV, position_B1, sample_B3, temperature, top_p):
        logits_BV = logits_BV[:, :vocab]  # rows that only fill the table have no meaning
        numbers_B4 = jnp.concatenate([sample_B3, position_B1.astype(jnp.uint32)], 1)
        keys_B = jax.vmap(key)(numbers_B4)
        token_B1 = choose(logits_BV, keys_B, temperature, top_k, top_p)
        return token_B1, ~jnp.isfinite(logits_BV).all(-1, keepdims=True)

    # Each device chooses for its own rows, from whole rows: the same on every mesh.
    run = local(choose_rows, ("tokens",) * 3 + (None, None), ("tokens", "tokens"))
    more = sample_B3, settings["temperature"], settings["top_p"]
    return lambda logits_BV, position_B1: run(logits_BV, position_B1, *more)


def _text(tokenizer, prompt, tokens):
    """The text of tokens after a prompt; some tokenizers strip a space that a text begins with."""
    if tokenizer is None:
        return None
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *tokens])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(tokens)
