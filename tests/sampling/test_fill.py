"""lm.fill against the model's own logits, of words that a tokenizer trained here knows."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.data.tokenizer import of_bytes, train_tokenizer
from lm.errors import UserError
from lm.model import LanguageModel
from lm.nn.transformer import Transformer
from tests.nn.tiny import parameters, tiny

TEXTS = ["the cat sat on the mat.", "a dog ran to the cat, and the cat ran."] * 9
SIZES = {"wordpiece": 200, "bpe": 300}


@pytest.fixture(scope="module", params=SIZES)
def model(request):
    """An encoder of BERT's kind; its vocabulary has rows that are no tokens."""
    tokenizer = train_tokenizer(request.param, TEXTS, SIZES[request.param], "mask")
    keys = {"stack": "encoder", "num_layers": 1, "max_positions": 24, "head_bias": "learned"}
    keys["vocab_size"] = tokenizer.size + 3
    config = tiny({f"model.{key}": value for key, value in keys.items()})
    return LanguageModel(
        config.model, Transformer(config.model), parameters(config), tokenizer=tokenizer
    )


def mask_of(model):
    return "[MASK]" if model.tokenizer.kind == "wordpiece" else "<mask>"


def certain(model, token):
    """The model, but it is certain of one token."""
    bias = jnp.zeros(model.config.vocab_size).at[token].set(1e4)
    return dataclasses.replace(model, params={**model.params, "head": {"bias_V": bias}})


def test_guesses_are_the_likeliest_tokens(model):
    mask, tokenizer = mask_of(model), model.tokenizer
    text, blanks = lm.fill(model, f"the {mask} sat on {mask}.", top_k=4)
    special = tokenizer.special
    ordinary = [tokenizer.encode(part) for part in ("the", " sat on", ".")]
    tokens = np.concatenate([*ordinary[:1], [special["mask"]], ordinary[1], [special["mask"]]])
    tokens = np.array([special["begin"], *tokens, *ordinary[2], special["end"]])
    logits = np.asarray(model(tokens[None])[0], np.float64)[:, : tokenizer.size]
    odds = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    places = np.flatnonzero(tokens == special["mask"])
    for blank, odds_V in zip(blanks, odds[places], strict=True):
        best = np.argsort(-odds_V)[:4]
        assert blank.tokens == best.tolist()
        np.testing.assert_allclose(blank.probabilities, odds_V[best], rtol=1e-4)
        assert blank.texts == [tokenizer.decode([token]) for token in best]
    tokens[places] = [blank.tokens[0] for blank in blanks]
    assert text == tokenizer.decode(tokens[1:-1])


def test_all_tokens_have_all_probability(model):
    _, [blank] = lm.fill(model, f"a {mask_of(model)}", top_k=model.config.vocab_size)
    assert sorted(blank.tokens) == [*range(model.tokenizer.size)]
    assert sum(blank.probabilities) == pytest.approx(1)
    assert blank.probabilities == sorted(blank.probabilities, reverse=True)


def test_a_blank_is_filled_where_it_stands(model):
    word = "cat" if model.tokenizer.kind == "wordpiece" else " cat"
    [token] = model.tokenizer.encode(word)
    filled, [blank] = lm.fill(certain(model, token), f"the {mask_of(model)} sat on the mat.")
    assert filled == "the cat sat on the mat."
    assert blank.texts[0] == word and blank.probabilities[0] == pytest.approx(1)
    assert len(blank.texts) == 5


def test_a_special_token_is_no_text(model):
    filled, [blank] = lm.fill(certain(model, model.tokenizer.special["end"]), mask_of(model))
    assert (filled, blank.texts[0]) == ("", "")


def test_what_cannot_be_filled(model):
    mask, decoder = mask_of(model), dataclasses.replace(model.config, stack="decoder")
    for changed, text, settings, message in (
        ({}, "a cat", {}, f"'a cat' has no blank; write {mask} where"),
        ({}, mask, {"top_k": 0}, "top_k=0 is not possible; it must be from 1 to"),
        ({}, mask, {"top_k": 999}, "top_k=999"),
        ({}, f"{mask} {'cat ' * 30}", {}, "tokens are more than the model's 24 positions"),
        ({"tokenizer": None}, mask, {}, "no tokenizer with a mask"),
        ({"tokenizer": of_bytes()}, mask, {}, "no tokenizer with a mask"),
        ({"config": decoder}, mask, {}, "stack 'decoder' fills no blanks; lm.generate(model, ...)"),
    ):
        with pytest.raises(UserError) as caught:
            lm.fill(dataclasses.replace(model, **changed), text, **settings)
        assert message in str(caught.value) and "\n" not in str(caught.value)
