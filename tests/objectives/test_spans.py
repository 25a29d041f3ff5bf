"""Corrupted spans: T5's and UL2's numbers, and the text put together again."""

import collections

import numpy as np
import pytest

from lm.errors import UserError
from lm.objectives.builder import make_examples
from lm.objectives.spans import partition
from tests.objectives.examples import (
    MODES,
    NAMES,
    SENTINELS,
    Numbers,
    data,
    examples_of,
    generator,
    model,
    objective,
)

END, PAD = NAMES["end"], NAMES["pad"]
PLACE = {token: i for i, token in enumerate(SENTINELS)}
STACKS = ("encoder_decoder", "decoder")


def make(kind="span_corruption", stack="encoder_decoder", tokenizer=None, **changes):
    lengths = {key: changes.pop(key) for key in [*changes] if key.endswith("_length")}
    return make_examples(
        objective(kind, **changes), data(**lengths), model(stack), tokenizer or Numbers()
    )


def parts(example):
    """(source, target) of an example of either stack, without padding; checks the other arrays."""
    if "prefix" in example:
        count, size = int(example["prefix"].sum()), int(example["segments"].sum())
        assert (np.diff(example["prefix"]) <= 0).all()
        assert (np.diff(example["segments"]) <= 0).all()
        row = [*example["tokens"][:size], example["targets"][size - 1]]
        assert example["tokens"][1:size].tolist() == example["targets"][: size - 1].tolist()
        assert np.flatnonzero(example["weights"]).tolist() == list(range(count - 1, size))
        return row[:count], row[count:]
    count, size = int(example["source_segments"].sum()), int(example["weights"].sum())
    for name, real in (("source", count), ("targets", size)):
        assert (example[name][real:] == PAD).all()
    assert (np.diff(example["source_segments"]) <= 0).all()
    assert (np.diff(example["weights"]) <= 0).all()
    assert example["tokens"][0] == 9  # model.start_token
    assert example["tokens"][1:size].tolist() == example["targets"][: size - 1].tolist()
    return example["source"][:count].tolist(), example["targets"][:size].tolist()


def restored(source, target):
    """The text: each sentinel of the source replaced by what follows it in the target."""
    spans = {}
    for token in target:
        if token in PLACE:
            assert len(spans) == PLACE[token]  # they descend
            spans[last := token] = []
        else:
            spans[last].append(token)
    assert [token for token in source if token in PLACE] == list(spans)
    return [x for token in source for x in spans.get(token, [token])], list(spans.values())


def test_t5_reads_568_tokens_for_512_and_114():
    made = make(sequence_length=512)
    assert (made.raw_length, made.target_length) == (568, 114)
    for tokens, example in examples_of(made, 50):
        assert example["source_segments"].all()
        assert example["weights"].all()
        source, target = parts(example)
        assert source[-1] == target[-1] == END
        assert source[0] == tokens[0]  # it begins with clean text
        text, spans = restored(source[:-1], target[:-1])
        assert text == tokens.tolist()
        assert (len(spans), sum(map(len, spans))) == (28, 85)  # round(85 / 3), round(0.15 * 568)


def t5_lengths(inputs_length, noise_density, mean_noise_span_length):
    """random_spans_helper of T5's t5/data/preprocessors.py, without its special case."""

    def lengths(tokens_length):
        num_noise_tokens = round(tokens_length * noise_density)
        num_noise_spans = round(num_noise_tokens / mean_noise_span_length)
        inputs = tokens_length - num_noise_tokens + num_noise_spans + 1
        return inputs, num_noise_tokens + num_noise_spans + 1

    tokens_length = inputs_length
    while lengths(tokens_length + 1)[0] <= inputs_length:
        tokens_length += 1
    return tokens_length, lengths(tokens_length)[1]


@pytest.mark.parametrize("length", [64, 100, 256, 511, 512, 513, 1024])
@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.15, 8.0), (0.5, 3.0), (0.1, 2.0)])
def test_lengths_are_those_of_t5s_code(length, rate, mean):
    made = make(sequence_length=length, noise_rate=rate, mean_span=mean)
    assert (made.raw_length, made.target_length) == t5_lengths(length, rate, mean)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("kind", ["span_corruption", "ul2", "prefix"])
@pytest.mark.parametrize("sequence_length", [12, 17, 64, 300])
def test_the_text_can_be_put_together(kind, stack, sequence_length):
    made = make(kind, stack, sequence_length=sequence_length)
    for length in sorted({2, 3, 4, 7, made.raw_length - 1, made.raw_length}):
        for tokens, example in examples_of(made, 30, length):
            source, target = parts(example)
            if not (kind == "prefix" and stack == "decoder"):
                assert source.pop() == target.pop() == END
            if kind == "prefix":
                assert min(len(source), len(target)) >= 1
                assert [*source, *target] == tokens.tolist()
                continue
            assert kind != "ul2" or source.pop(0) in MODES.values()
            text, spans = restored(source, target)
            assert text == tokens.tolist()
            assert min(map(len, spans)) >= 1
            assert source[0] == tokens[0]


def test_a_given_target_length_is_kept_to():
    made = make(sequence_length=512, target_length=60)
    assert made.raw_length < 568
    assert all(len(x["targets"]) == 60 and x["weights"].all() for _, x in examples_of(made, 5))
    made = make(sequence_length=512, target_length=200)
    assert made.raw_length == 568
    assert all(x["weights"].sum() == 114 == len(x["targets"]) - 86 for _, x in examples_of(made, 5))
    for tokens, example in examples_of(make("prefix", sequence_length=64, target_length=9), 300):
        source, target = parts(example)
        assert [*source[:-1], *target[:-1]] == tokens.tolist()
        assert len(target) <= 9


def test_a_text_is_cut_anywhere():
    for stack in STACKS:
        made = make("prefix", stack, sequence_length=16)
        cuts = collections.Counter(len(parts(x)[1]) for _, x in examples_of(made, 3000))
        places = 15 if stack == "encoder_decoder" else 16
        assert len(cuts) == places
        assert max(abs(n - 3000 / places) for n in cuts.values()) < 5 * (3000 / places) ** 0.5


def test_every_partition_is_as_likely():
    found = collections.Counter(
        tuple(partition(6, 3, generator(2, key)).tolist()) for key in range(5000)
    )
    assert len(found) == 10  # compositions of 6 in 3 parts: C(5, 2)
    assert all(sum(lengths) == 6 and min(lengths) >= 1 for lengths in found)
    assert max(abs(n - 500) for n in found.values()) < 5 * 500**0.5
    assert partition(1, 1, generator(0, 0)).tolist() == [1]
    assert partition(4, 4, generator(0, 0)).tolist() == [1, 1, 1, 1]


def test_ul2s_seven_denoisers():
    made = make("ul2", sequence_length=512)
    n = made.raw_length
    assert n < 568  # the mode takes a place
    found = collections.Counter()
    for tokens, example in examples_of(made, 1400):
        source, target = parts(example)
        mode = source[0]
        text, spans = restored(source[1:-1], target[:-1])
        assert text == tokens.tolist()
        if mode == MODES["[S2S]"]:
            assert source[-2] in PLACE  # the one span is the end
        found[mode, len(spans), sum(map(len, spans))] += 1
    r, s, x = MODES.values()
    expected = [(r, 3, 0.15), (r, 8, 0.15), (x, 3, 0.5), (x, 8, 0.5), (x, 64, 0.15), (x, 64, 0.5)]
    shapes = {(mode, round(round(n * rate) / mu), round(n * rate)) for mode, mu, rate in expected}
    assert set(found) == shapes | {(s, 1, round(n / 4))}
    assert max(abs(count - 200) for count in found.values()) < 5 * 200**0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sequence_length": 2}, "data.sequence_length=2 is too short"),
        ({"target_length": 1}, "data.target_length=1 is too short"),
        ({"kind": "prefix", "target_length": 1}, "data.target_length=1 is too short"),
        (
            {"sequence_length": 8192, "mean_span": 1.0},
            "makes 1229 spans of the 8191 tokens .* has 1000 sentinels",
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        make(**arguments)
    assert "\n" not in str(caught.value)
