"""Kinds, mixtures of them, and what they need of model, tokenizer and data."""

import collections
from pydoc_data.topics import topics

import numpy as np
import pytest

from lm.config import KINDS
from lm.data.loader import Batches
from lm.data.store import TokenStore
from lm.data.tokenizer import train_tokenizer
from lm.errors import UserError
from lm.objectives.builder import EXAMPLES, make_examples
from tests.objectives.examples import Numbers, OnlyRandom, data, model, objective, window

STACK = {
    "masked": "encoder",
    "replaced": "encoder",
    "contrastive": "encoder",
    "causal": "decoder",
}


def make(kind, stack="", tokenizer=None, **changes):
    stack = stack or STACK.get(kind, "encoder_decoder")
    return make_examples(objective(kind), data(**changes), model(stack), tokenizer or Numbers())


def test_causal_needs_none():
    assert make("causal", separate_documents=True) is None


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "causal"])
def test_examples_depend_on_their_tokens_and_key_alone_and_have_fixed_widths(kind):
    made, again, shapes = make(kind), make(kind), set()
    for length in (2, 3, made.raw_length):
        for key in range(5):
            one, two = (
                x(window(length), OnlyRandom(key), lambda rng: window(made.raw_length, 500))
                for x in (made, again)
            )
            assert all(np.array_equal(one[name], two[name]) for name in one)
            shapes.add(tuple((k, x.shape, str(x.dtype)) for k, x in one.items()))
    assert len(shapes) == 1


def test_mixtures_are_exact_and_share_a_form():
    made = make("span_corruption=3,prefix=1")
    assert made.raw_length == make("span_corruption").raw_length  # 64 tokens of prefix are fewer
    assert made.target_length == make("prefix").target_length == 64
    chosen = made.choose(np.arange(8192), 5)
    names = [type(each.args[0]).__name__ for each in chosen]
    assert collections.Counter(names[:4096]) == {"SpanCorruption": 3072, "Prefix": 1024}
    assert collections.Counter(names[4096:]) == {"SpanCorruption": 3072, "Prefix": 1024}
    assert names[:4096] != names[4096:]
    assert names[777] == type(made.choose(np.array([777]), 5)[0].args[0]).__name__
    forms = {
        tuple((k, x.shape) for k, x in each(window(made.raw_length), OnlyRandom(i), None).items())
        for i, each in enumerate(chosen[:40])
    }
    assert len(forms) == 1


def test_every_kind_has_examples():
    assert {*KINDS} == {"causal", *EXAMPLES}


def test_target_lengths():
    for kind, stack, expected in (
        ("span_corruption", "encoder_decoder", 114),
        ("prefix", "encoder_decoder", 512),
        ("span_corruption,prefix", "encoder_decoder", 512),
        ("denoising", "encoder_decoder", 512),
        ("span_corruption", "decoder", 0),
        ("masked", "encoder", 0),
    ):
        assert make(kind, stack, sequence_length=512).target_length == expected
    assert make("prefix", target_length=99).target_length == 99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            (
                {"kind": kind, "tokenizer": Numbers([role])},
                f"objective.kind='{kind}' needs .*{name}",
            )
            for kind, role, name in (
                ("masked", "mask", "<mask>.*'numbers'.*data.special_tokens=mask"),
                ("masked", "begin", r"\[CLS\] or <s>.*data.special_tokens=mask"),
                ("contrastive", "end", r"\[SEP\] or </s>"),
                ("span_corruption", "sentinels", "<extra_id_0>.*special_tokens=sentinels"),
                ("ul2", "modes", r"\[NLU\].*special_tokens=sentinels"),
                ("prefix", "end", r"\[SEP\] or </s>"),
            )
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        make(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "objective_kind"),
    [
        ("wordpiece", "mask", "masked"),
        ("bpe", "mask", "denoising"),
        ("unigram", "sentinels", "span_corruption"),
        ("bpe", "sentinels", "ul2"),
        ("bpe", "end", "prefix"),
    ],
)
@pytest.mark.parametrize("length", [33, 128])
def test_batches_of_real_text_decode_to_the_text(kind, name, objective_kind, length):
    texts = [topics[each] for each in sorted(topics)[:25]]
    trained = train_tokenizer(kind, texts, 700, name)
    tokens = np.concatenate(trained.encode_many(texts)).astype(np.uint16)
    store = TokenStore(tokens, np.zeros(1, np.int64), 0)
    keys = data(sequence_length=length, tokenizer=kind)
    stack = STACK.get(objective_kind, "encoder_decoder")
    made = make_examples(objective(objective_kind), keys, model(stack), trained)
    batches = Batches(store, keys, 0, made)
    windows = {tokens[i : i + made.raw_length].tobytes() for i in range(len(tokens))}
    for step in (0, 1, 10**6):
        batch = batches.rows(step, np.arange(8))
        for row in range(8):
            if objective_kind in ("masked", "denoising"):
                text = batch["targets"][row]
            elif objective_kind == "prefix":
                text = np.concatenate([batch["source"][row], batch["targets"][row]])
            else:
                text = together(batch["source"][row], batch["targets"][row], trained.special)
            text = np.array([i for i in text if i in trained.ordinary], np.uint16)
            assert text.tobytes() in windows
            assert kind == "wordpiece" or trained.decode(text).strip("\ufffd") in "".join(texts)


def together(source, target, special):
    """The source with each sentinel replaced by what follows it in the target."""
    sentinels, spans = special["sentinels"], {None: []}
    at = None
    for token in target:
        at = token if token in sentinels else at
        spans.setdefault(at, []).append(token)
    return [x for token in source for x in (spans[token] if token in sentinels else [token])]
