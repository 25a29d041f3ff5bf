"""generate: against the model without a cache, prompts alone, other meshes; and what it refuses."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import base
from lm.config import resolve
from lm.data.tokenizer import (
    Tokenizer,
    of_bytes,
    of_characters,
    train_tokenizer,
)
from lm.errors import RunError, UserError
from lm.mesh import make_mesh
from lm.model import LanguageModel, skeleton
from lm.nn.cache import empty_cache
from lm.nn.params import bind, initialise
from lm.sampling import sample as module
from lm.sampling.sample import generate

# With 8 tokens more they are still padded to 16: few tests compile anything of their own.
PROMPTS = ["def f(", "", "世界"]
# The tokenizer has 257 tokens; the other rows are there for meshes to divide.
SIZES = {"d_model": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 264, "max_positions": 64}


def make_model(mesh=None, tokenizer=None, **changes):
    """A model whose random weights are large, so that its logits are far from equal."""
    keys = base()
    keys.model.update(**SIZES, initializer_std=0.3)
    keys.model.update(changes)
    keys.data.sequence_length = min(64, keys.model.max_positions)
    if keys.model.stack == "encoder_decoder":
        keys.objective.kind, keys.data.separate_documents = "span_corruption", False
    config = resolve(keys, 257).model
    module, _ = skeleton(config, mesh)
    params = initialise(module, 0, mesh)
    return LanguageModel(config, module, params, tokenizer or of_bytes(), mesh)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module", params=[64, 12])
def any_table(request):
    """A model whose position table holds all that is written, and one whose table does not."""
    return make_model(max_positions=request.param)


def always(model, token):
    """The model, but it is certain of one token."""
    direction = model.params["embed"]["table_VD"][token]
    norm = {"scale_D": jnp.zeros_like(direction), "bias_D": 99 * direction}
    return dataclasses.replace(model, params={**model.params, "final_norm": norm})


def tokens_of(samples):
    return [[sample.tokens for sample in of_prompt] for of_prompt in samples]


def greedy_without_cache(model, prompt, count):
    """Each token from the logits of all before it, computed anew; what follows them is not seen."""
    written = [256, *prompt.encode()]
    for _ in range(count):
        row = np.zeros((1, 48), np.int32)
        row[0, : len(written)] = written
        written.append(int(np.argmax(model(row)[0, len(written) - 1, :257])))
    return written[-count:]


def greedy_past_the_table(model, prompt, count):
    """Each token from the logits of a window, computed anew. A window with more tokens than the
    table has rows is cut to half of these; of a prompt it holds what it would, had it been written.
    """
    text, window, rows = [256, *prompt.encode()], [], model.config.max_positions
    for n in range(len(text) + count):
        if n == len(text):
            row = np.zeros((1, rows), np.int32)
            row[0, : len(window)] = window
            text.append(int(np.argmax(model(row)[0, len(window) - 1, :257])))
        window.append(text[n])
        if len(window) > rows:
            window = window[-max(1, rows // 2) :]
    return text[-count:]


VARIANTS = [
    {"position": "learned"},
    {"position": "sinusoid", "num_kv_heads": 1, "norm_placement": "sandwich"},
    {"position": "rope", "num_kv_heads": 2, "max_positions": 4},  # more than 4 tokens are no limit
    {"position": "none", "num_kv_heads": 2, "scan_layers": False, "parallel_block": True},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: changes["position"])
def test_greedy_is_the_model_without_a_cache(changes):
    model = make_model(**changes)
    samples = generate(model, PROMPTS, 14, temperature=0, stop_at_end_of_text=False)
    expected = [[greedy_without_cache(model, prompt, 14)] for prompt in PROMPTS]
    assert tokens_of(samples) == expected


@pytest.mark.parametrize("changes", VARIANTS[1:3], ids=lambda changes: changes["position"])
def test_logits_with_a_cache(changes):
    """Rows of 3 and 7 tokens, read together and then one token at a time, against each alone."""
    model = make_model(**changes)
    bound = bind(model.module, model.params)
    rows = np.random.default_rng(0).integers(0, 257, (2, 12)).astype(np.int32)
    alone = np.asarray(model(rows))
    prefix = module._left_padded([rows[0, :3].tolist(), rows[1, :7].tolist()], 1)
    lengths = np.array([[3], [7]], np.int32)

    @jax.jit
    def read(tokens, positions, segments, cache):
        hidden, cache, _ = bound.hidden(tokens, positions=positions, segments=segments, cache=cache)
        return bound.logits(hidden[:, -1:])[:, 0], cache

    logits, cache = read(**prefix, cache=empty_cache(model.config, 2, 32))
    for n in range(5):
        expected = np.take_along_axis(alone, lengths[:, :, None] - 1 + n, 1)[:, 0]
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        token = np.take_along_axis(rows, lengths + n, 1)
        logits, cache = read(token, lengths + n, np.ones_like(lengths), cache)


# Of 1 to 41 tokens: less than the tables, just as many, and more than three times as many.
UNEQUAL = ["", "def f(", "x" * 11, "y" * 12, "世界" * 2, "for i in range(len(dimension_names)):  #"]


@pytest.mark.parametrize("table", [12, 1])
def test_greedy_past_the_table(table):
    model = make_model(max_positions=table)
    samples = generate(model, UNEQUAL, 40, temperature=0, stop_at_end_of_text=False)
    assert tokens_of(samples) == [[greedy_past_the_table(model, text, 40)] for text in UNEQUAL]


def test_greedy_past_the_table_on_a_mesh():
    """In float64, where sums in another order decide nothing."""
    with jax.enable_x64(True):
        changes = {"param_dtype": "float64", "compute_dtype": "float64", "max_positions": 13}
        one, mesh = make_model(**changes), make_mesh(2, 2, 2)
        many = make_model(mesh, **changes)
        settings = {"temperature": 0, "stop_at_end_of_text": False, "num_samples": 2}
        samples = tokens_of(generate(many, UNEQUAL[:5], 40, **settings))
        expected = [greedy_past_the_table(one, text, 40) for text in UNEQUAL[:5]]
    assert samples == [[tokens, tokens] for tokens in expected]


BOTH = {"stack": "encoder_decoder", "num_layers": 1, "start_token": 7}
SOURCES = [[3, 4, 5, 6, 1, 2, 9], [8], [*range(20, 44)]]


def greedy_target(model, source, count):
    """Each token from the logits of the whole target so far, which follows the start token. Past
    the table it goes on with a window, as `greedy_past_the_table` does.
    """
    text, rows = [], min(24, model.config.num_positions)
    window, padded = [model.config.start_token], np.zeros((1, rows), np.int32)
    padded[0, : len(source)] = source
    real = np.arange(rows)[None] < len(source)
    for _ in range(count):
        row = np.zeros((1, rows), np.int32)
        row[0, : len(window)] = window
        logits = model(padded, row, padding_mask=real)
        text.append(int(np.argmax(logits[0, len(window) - 1, :257])))
        window.append(text[-1])
        if len(window) > rows:
            window = window[-max(1, rows // 2) :]
    return text


def test_a_target_is_that_of_the_model_without_a_cache():
    keys = {"position": "buckets", "norm": "rms_norm", "num_kv_heads": 2, "logit_scale": 0.2}
    model = make_model(**BOTH, **keys)
    samples = generate(model, SOURCES, 14, temperature=0, stop_at_end_of_text=False, num_samples=2)
    expected = [greedy_target(model, source, 14) for source in SOURCES]
    assert tokens_of(samples) == [[tokens, tokens] for tokens in expected]
    assert len({tuple(tokens) for tokens in expected}) == len(SOURCES)


def test_a_target_past_the_table_and_on_a_mesh():
    """In float64, where sums in another order decide nothing. Sources must fit the table."""
    with jax.enable_x64(True):
        changes = {"param_dtype": "float64", "compute_dtype": "float64", "max_positions": 9}
        one, many = (make_model(mesh, **BOTH, **changes) for mesh in (None, make_mesh(2, 2, 2)))
        settings = {"temperature": 0, "stop_at_end_of_text": False, "num_samples": 3}
        sources = SOURCES[:2]
        samples = tokens_of(generate(many, sources, 20, **settings))
        assert samples == [[greedy_target(one, source, 20)] * 3 for source in sources]
    with pytest.raises(UserError, match=r"prompts\[0\] of 10 tokens is longer than .* 9 pos"):
        generate(one, [[1] * 10], 5)


def greedy_after_a_prefix(model, prompt, count):
    """Each token from the logits of all before it, of which the prompt is read both ways."""
    text = [256, *prompt.encode()]
    prefix = (np.arange(48) < len(text))[None]
    for _ in range(count):
        row = np.zeros((1, 48), np.int32)
        row[0, : len(text)] = text
        text.append(int(np.argmax(model(row, prefix=prefix)[0, len(text) - 1, :257])))
    return text[-count:]


def test_a_prompt_is_read_in_both_directions():
    model = make_model(prefix_attention=True)
    prompts = [*PROMPTS, "for i in range(9):"]
    samples = generate(model, prompts, 12, temperature=0, stop_at_end_of_text=False)
    expected = [[greedy_after_a_prefix(model, prompt, 12)] for prompt in prompts]
    assert tokens_of(samples) == expected


def test_an_encoder_writes_nothing(model):
    encoder = dataclasses.replace(model.config, stack="encoder")
    with pytest.raises(UserError, match=r"an encoder writes no text; lm.fill\(model, ...\)"):
        generate(dataclasses.replace(model, config=encoder), "a", 5)


def test_a_text_is_a_source_before_its_end(model):
    """It may hold names of special tokens."""
    tokenizer = train_tokenizer("bpe", ["a b c d, e f. "] * 9, 400, "sentinels")
    changes = {"stack": "encoder_decoder", "num_encoder_layers": 1, "vocab_size": 400}
    config = dataclasses.replace(model.config, **changes)
    both = dataclasses.replace(model, config=config, tokenizer=tokenizer)
    source = [*tokenizer.encode("a b"), tokenizer.special["sentinels"][0]]
    source = [*source, *tokenizer.encode(" d"), tokenizer.special["end"]]
    assert module._encoded(both, 0, "a b <extra_id_0> d") == source


def test_randomness_belongs_to_the_place_in_the_text(model):
    """Past a table too. So hot, a sample is its noise alone."""
    settings = {"temperature": 1e9, "stop_at_end_of_text": False}
    short = make_model(max_positions=12)
    assert generate(short, PROMPTS, 40, **settings) == generate(model, PROMPTS, 40, **settings)


def test_prompts_together_and_alone(model):
    settings = {"temperature": 0, "stop_at_end_of_text": False}
    together = generate(model, PROMPTS, 14, **settings)
    assert together == [generate(model, prompt, 14, **settings)[0] for prompt in PROMPTS]


def test_a_sample_depends_on_its_own_place_alone(any_table):
    model = any_table
    settings = {"seed": 7, "stop_at_end_of_text": False}
    whole = tokens_of(generate(model, PROMPTS, 16, num_samples=3, **settings))
    fewer = tokens_of(generate(model, PROMPTS, 16, **settings))
    assert fewer == [samples[:1] for samples in whole]
    shorter = tokens_of(generate(model, PROMPTS, 9, num_samples=3, **settings))
    assert shorter == [[tokens[:9] for tokens in samples] for samples in whole]
    others = tokens_of(generate(model, ["x" * 12, "", "y"], 16, num_samples=3, **settings))
    assert others[1] == whole[1] and others[0] != whole[0]
    # All differ: by sample, by place in the list, by seed.
    same = tokens_of(generate(model, [""] * 3, 16, num_samples=3, **settings))
    again = tokens_of(generate(model, [""] * 3, 16, num_samples=3, **{**settings, "seed": 8}))
    assert len({tuple(tokens) for samples in (*same, *again) for tokens in samples}) == 18


def test_a_sample_can_be_continued(any_table):
    model = any_table
    settings = {"seed": 1, "stop_at_end_of_text": False}
    whole = [tokens for [tokens] in tokens_of(generate(model, PROMPTS, 16, **settings))]
    begun = [
        np.array([256, *prompt.encode(), *tokens[:8]])
        for prompt, tokens in zip(PROMPTS, whole, strict=True)
    ]
    rest = tokens_of(generate(model, begun, 8, **settings))
    assert rest == [[tokens[8:]] for tokens in whole]


def test_the_end_of_text(any_table):
    model = any_table
    through = tokens_of(generate(model, [[1], [2], [3]], 16, num_samples=3))
    through = [tokens for samples in through for tokens in samples]
    # The end of text is what some of them hold.
    end = next(token for token in through[0][1:] if token not in through[1])
    tokenizer = of_bytes()
    tokenizer.end_of_text = end
    stopping = dataclasses.replace(model, tokenizer=tokenizer)
    samples = generate(stopping, [[1], [2], [3]], 16, num_samples=3)
    for sample, whole in zip(itertools.chain(*samples), through, strict=True):
        assert sample.ended == (end in whole)
        assert sample.tokens == whole[: whole.index(end) if end in whole else None]
        assert sample.text == tokenizer.decode(sample.tokens)


def test_it_ends_when_all_have_ended():
    ending = always(make_model(position="rope"), 256)
    # All 16,384 tokens would take minutes.
    assert generate(ending, "a", 2**14) == [[module.Sample("", [], True)]]


@pytest.mark.parametrize("temperature", [0, 1.0, 1e9])
def test_rows_that_only_fill_the_table_are_never_drawn(model, temperature):
    sure = always(model, 260)
    samples = generate(
        sure, PROMPTS, 16, num_samples=3, temperature=temperature, stop_at_end_of_text=False
    )
    drawn = [token for tokens in itertools.chain(*tokens_of(samples)) for token in tokens]
    assert len(drawn) == 9 * 16 and max(drawn) <= 256


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        ((2, 2, 2), {"position": "rope", "num_kv_heads": 2}),
        ((8, 1, 1), {}),
        ((1, 1, 4), {"num_kv_heads": 2}),
    ],
    ids=str,
)
def test_a_mesh_changes_nothing(sizes, changes):
    """In float64, where sums in another order decide nothing."""
    settings = {"temperature": 0.8, "top_p": 0.9, "num_samples": 3, "seed": 5}
    with jax.enable_x64(True):
        float64 = {"param_dtype": "float64", "compute_dtype": "float64", **changes}
        mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
        one, many = make_model(**float64), make_model(mesh, **float64)
        expected = generate(one, PROMPTS, 12, **settings)
        assert generate(many, PROMPTS, 12, **settings) == expected
        if sizes == (2, 2, 2):
            greedy = [generate(model, PROMPTS, 12, temperature=0) for model in (one, many)]
            assert greedy[0] == greedy[1]


def test_one_row_on_a_mesh_that_divides_no_rows(model):
    many = make_model(make_mesh(1, 1, 2, devices=jax.devices()[:2]))
    one = generate(model, PROMPTS[:1], 12, temperature=0)
    assert generate(many, PROMPTS[:1], 12, temperature=0) == one


def test_other_lengths_and_settings_compile_nothing(model):
    generate(model, PROMPTS, 16, top_p=0.5)
    compiled = module._write._cache_size()
    generate(model, ["a longer one", "", "b"], 11, top_p=0.7, temperature=0.3, seed=9)
    assert module._write._cache_size() == compiled


def test_past_the_table_two_programs_are_compiled():
    model, compiled = make_model(max_positions=9), module._write._cache_size()
    for num_tokens in (60, 33, 100):
        generate(model, ["def f(", ""], num_tokens, num_samples=2)
    # One reads the prompts, one the windows of the samples.
    assert module._write._cache_size() == compiled + 2


def test_bfloat16():
    [[sample], [other]] = generate(
        make_model(compute_dtype="bfloat16"), ["def", "x"], 10, top_p=0.9, top_k=20
    )
    assert all(len(row.tokens) == 10 or row.ended for row in (sample, other))


def test_without_a_tokenizer(model):
    bare = dataclasses.replace(model, tokenizer=None)
    samples = generate(bare, [[256, *b"def"], [1], [2]], 16, seed=2)
    assert [(sample.text, len(sample.tokens)) for [sample] in samples] == [(None, 16)] * 3
    with pytest.raises(UserError, match=r"prompts\[0\]: the model has no tokenizer; give tokens"):
        generate(bare, "def", 10)


def test_a_space_where_the_text_goes_on():
    words = {"type": "WordLevel", "vocab": {"▁a": 0, "▁b": 1}, "unk_token": "▁a"}
    decoder = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    tokenizer = Tokenizer(f"""{{"version": "1.0", "model": {json.dumps(words)},
        "decoder": {json.dumps(decoder)}, "added_tokens": []}}""")
    assert tokenizer.decode([1]) == "b"
    assert module._text(tokenizer, [0], [1, 0]) == " b a"


def test_weights_that_are_not_finite(model):
    head = {**model.params["embed"], "table_VD": jnp.full((264, 32), jnp.nan)}
    broken = dataclasses.replace(model, params={**model.params, "embed": head})
    with pytest.raises(RunError, match=r"logits after prompts\[0\] are not finite.*earlier"):
        generate(broken, PROMPTS, 16)


@pytest.mark.parametrize(
    ("prompts", "settings", "named"),
    [
        ("a", {"num_tokens": 0}, "num_tokens=0 .*whole number, 1 or more"),
        ("a", {"num_tokens": 2.5}, "num_tokens=2.5 .*whole number"),
        ("a", {"num_tokens": 10**10}, "num_tokens=10000000000 .*at most 16777216"),
        ("a", {"num_samples": 0}, "num_samples=0 .*1 or more"),
        ("a", {"top_k": -1}, "top_k=-1 .*0 or more"),
        ("a", {"top_p": 0}, r"top_p=0 .*in \(0, 1\]"),
        ("a", {"top_p": 1.5}, r"top_p=1.5 .*in \(0, 1\]"),
        ("a", {"top_p": float("nan")}, "top_p=nan"),
        ("a", {"temperature": -0.5}, "temperature=-0.5 .*0, which is greedy"),
        ("a", {"temperature": float("inf")}, "temperature=inf"),
        ("a", {"temperature": 1e-40}, "temperature=1e-40 .*from 1e-30 up"),
        ("a", {"seed": -1}, "seed=-1"),
        ("a", {"seed": 2**32}, "seed=4294967296 .*at most 4294967295"),
        ([[]], {}, r"prompts\[0\]=\[\] is neither a text nor a list of one or more tokens"),
        ([1, 2], {}, r"prompts\[0\]=1 is neither"),
        ([[1], [0.5]], {}, r"prompts\[1\]=\[0.5\] is neither"),
        ([[3, 257]], {}, r"prompts\[0\] holds token 257; the model's are 0 to 256"),
        ([[-1]], {}, "holds token -1"),
    ],
)
def test_refused(model, prompts, settings, named):
    with pytest.raises(UserError, match=named):
        generate(model, prompts, **{"num_tokens": 5, **settings})


def test_characters():
    characters = make_model(tokenizer=of_characters("abc"))
    [[sample]] = generate(characters, "ab", 16)
    assert {*sample.text} <= {*"abc"} and len(sample.text) == 16 and not sample.ended
    for prompt, named in (
        ("", r"prompts\[0\] is empty, and the tokenizer"),
        ("x", "character 'x'"),
    ):
        with pytest.raises(UserError, match=named):
            generate(characters, prompt, 10)


def test_no_prompts(model):
    assert generate(model, [], 10) == []
