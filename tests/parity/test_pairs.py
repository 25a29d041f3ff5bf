"""Every encoder-decoder beside transformers: logits, losses, every gradient, greedy decoding.

The oracle is transformers' own model with random weights, in float32, eager attention, eval mode.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm.hub.convert import export_model, import_model
from lm.sampling.sample import generate
from tests.parity.comparing import (
    asked,
    close,
    objective,
    ours,
    random_inputs,
    random_tokens,
    same_loss_and_gradients,
    saved_model,
    theirs,
    torch,
    transformers,
)
from tests.parity.models import BALANCED, PAIRS, P, V

pytestmark = pytest.mark.parity


@pytest.fixture(params=PAIRS, ids=PAIRS, scope="module")
def saved(request, tmp_path_factory):
    return saved_model(request.param, tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def model(saved):
    return import_model(saved[1])


@pytest.mark.parametrize("length", [1, 7, P])
def test_logits(saved, model, length):
    inputs = random_inputs(model.config, 3, length)
    logits = ours(model, **inputs)
    assert logits.dtype == jnp.float32 and logits.shape == (3, length // 2 + 3, V)
    close(logits, theirs(saved[0], **inputs))


def test_logits_of_padded_sources_and_targets(saved, model):
    oracle, _ = saved
    inputs = random_inputs(model.config, 3, 17)
    real = np.arange(17) < np.array([[17], [4], [12]])
    target_real = np.arange(11) < np.array([[3], [11], [8]])
    # Theirs counts padding on the left among what an expert takes.
    sides = (real,) if model.config.num_experts else (real, real[:, ::-1])
    for mask in sides:
        found = ours(model, **inputs, padding_mask=mask, target_padding_mask=target_real)
        expected = theirs(oracle, **inputs, padding_mask=mask, decoder_attention_mask=target_real)
        close(found[target_real], expected[target_real])


def test_buckets_of_long_distances(tmp_path):
    oracle, folder = saved_model("t5-tied-unscaled", tmp_path)
    model = import_model(folder)
    inputs = random_inputs(model.config, 1, 300)
    close(model(**inputs), theirs(oracle, **inputs))


def test_loss_and_every_gradient(saved, model):
    oracle, _ = saved
    # Theirs has no losses of routers that are in every layer.
    routed = oracle.config.model_type in BALANCED and model.config.experts_every > 1
    # Theirs balances each sequence by itself: of one, that is ours.
    rows = 1 if routed else 3
    inputs = random_inputs(model.config, rows, 13)
    real = (np.arange(13) < np.array([[13], [9], [11]]))[:rows]
    labels = random_tokens(rows, 8, seed=8, least=3, most=V - 1)
    labels[-1, -2:] = -100  # padding, which theirs reads as its padding token
    shifted = np.where(labels < 0, oracle.config.pad_token_id, labels)[:, :-1]
    start = np.full((rows, 1), model.config.start_token)
    batch = {
        "source": inputs["tokens"],
        "source_segments": real * 1,
        "tokens": np.concatenate([start, shifted], 1),
        "targets": np.maximum(labels, 0),
        "weights": (labels >= 0).astype(np.float32),
    }
    oracle.router_aux_loss_coef, oracle.router_z_loss_coef = 0.3, 0.2
    asks = {"output_router_logits": True} if routed else {}
    given = {"input_ids": inputs["tokens"], "attention_mask": real * 1, "labels": labels}
    out = oracle(**{name: torch.tensor(array) for name, array in given.items()}, **asks)
    keys = {"router_aux_loss": 0.3, "router_z_loss": 0.2} if routed else {}
    config = objective(kind="span_corruption", **keys)
    same_loss_and_gradients(model, oracle, out, batch, config)


def test_greedy_decoding_gives_the_same_64_tokens(saved, model):
    oracle, _ = saved
    lengths = (11, 3, 7, 11, 1)
    sources = random_inputs(model.config, len(lengths), 11)["tokens"]
    real = np.arange(11) < np.array(lengths)[:, None]
    # As a whole: what is None would be filled from the model's own.
    oracle.generation_config = transformers.GenerationConfig(
        do_sample=False,
        num_beams=1,
        # Theirs has as many layers as the encoder. Without, an expert's tokens are all counted.
        use_cache=model.config.num_layers == model.config.num_encoder_layers,
        max_new_tokens=64,
        decoder_start_token_id=model.config.start_token,
        pad_token_id=0,
    )
    expected = oracle.generate(torch.tensor(sources), attention_mask=torch.tensor(real * 1))
    prompts = [row[:length] for row, length in zip(sources.tolist(), lengths, strict=True)]
    samples = generate(model, prompts, 64, temperature=0.0)
    for row, (sample,) in zip(expected.tolist(), samples, strict=True):
        assert [*sample.tokens] == row[1:] and len(row) == 65


def test_the_hubs_own_bart_layout(tmp_path):
    """A BartModel, which has neither head nor prefix; and again, whoever reads it."""
    oracle, _ = saved_model("bart", tmp_path / "whole")
    oracle.final_logits_bias.zero_()
    oracle.model.save_pretrained(tmp_path / "hub")
    model = import_model(tmp_path / "hub")
    inputs = random_inputs(model.config, 2, 9)
    close(ours(model, **inputs), theirs(oracle, **inputs))
    export_model(model, tmp_path / "out")
    for kind in (transformers.BartModel, transformers.BartForConditionalGeneration):
        again, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(report.values()), report
    close(ours(model, **inputs), theirs(again.eval(), **inputs))


def test_embeddings_that_are_there_twice(tmp_path):
    oracle, folder = saved_model("bart", tmp_path)
    state = load_file(folder / "model.safetensors")
    shared = state.pop("model.shared.weight")
    for name in ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        state[f"{name}.weight"] = shared
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    inputs = random_inputs(import_model(folder).config, 2, 9)
    close(ours(import_model(folder), **inputs), theirs(oracle, **inputs))
    with torch.no_grad():
        assert asked(oracle, **inputs).logits.shape[-1] == V
