"""A tiny model of transformers beside ours: how it is made, asked, and compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.base import base
from lm.config import ObjectiveConfig
from lm.hub.families import FAMILIES
from lm.hub.tensors import slots
from lm.nn.params import bind
from lm.objectives.loss import objective_loss
from tests.parity.models import CLASSES, PAIRS, VARIANTS, V

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
LOGITS = 1e-5  # of the largest, or of 1; the project promises 1e-4
THEIRS = {
    "tokens": "input_ids",
    "target": "decoder_input_ids",
    "positions": "position_ids",
    "padding_mask": "attention_mask",
    "token_types": "token_type_ids",
    "global_mask": "global_attention_mask",
}


def saved_model(variant, folder):
    """(transformers' model of a variant, the folder it is saved in); no bias is 0, no scale 1."""
    family, keys, *kind = VARIANTS[variant]
    config_class, model_class = (getattr(transformers, name) for name in CLASSES[family])
    model_class = getattr(transformers, kind[0]) if kind else model_class
    torch.manual_seed(sum(map(ord, variant)))
    # A padding token's row of the embedding would get no gradient.
    oracle = model_class(config_class(**{"pad_token_id": None, **EAGER, **keys})).eval()
    if family == "t5" and not keys.get("tie_word_embeddings", True):
        # Version 5 ties them whatever the key says.
        oracle.lm_head.weight = torch.nn.Parameter(torch.randn_like(oracle.shared.weight))
    with torch.no_grad():
        for name, buffer in oracle.named_buffers():
            if name.endswith(("correction_bias", "final_logits_bias")):
                buffer.add_(0.1 * torch.randn_like(buffer))
        for weight in oracle.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
        if variant in PAIRS:  # or a tied model would write one token again and again
            oracle.get_input_embeddings().weight.mul_(0.2)
    oracle.save_pretrained(folder)
    return oracle, folder


def random_tokens(*shape, seed=0, least=0, most=V):
    return np.random.default_rng(seed).integers(least, most, shape)


def random_inputs(config, rows, length, seed=0):
    """What a model of this config reads, by the names that ours has: no token that is special."""
    tokens = random_tokens(rows, length, seed=seed, least=3, most=V - 1)
    inputs = {"tokens": tokens}
    if config.token_types > 1:
        inputs["token_types"] = random_tokens(rows, length, seed=seed + 1, most=config.token_types)
    if config.global_attention:
        inputs["global_mask"] = random_tokens(rows, length, seed=seed + 2, most=4) == 0
    if config.stack == "encoder_decoder":
        target = random_tokens(rows, length // 2 + 3, seed=seed + 3, least=3, most=V - 1)
        target[:, 0] = config.start_token
        inputs["target"] = target
    return inputs


def asked(oracle, **inputs):
    """What transformers' model gives; inputs by our names, arrays."""
    tensors = {name: torch.tensor(np.asarray(array) * 1) for name, array in inputs.items()}
    return oracle(**{THEIRS.get(name, name): tensor for name, tensor in tensors.items()})


def theirs(oracle, tokens, target=None, **rows):
    """Logits, or the states of a model without a head; arguments as ours."""
    rows |= {} if target is None else {"target": target}
    with torch.no_grad():
        out = asked(oracle, tokens=tokens, **rows)
    names = ("logits", "prediction_logits", "last_hidden_state")
    return next(out[name] for name in names if name in out).numpy()


def ours(model, tokens, target=None, **rows):
    run = model.hidden_states if model.config.head == "none" else model
    return np.asarray(run(tokens, target, **rows))


def close(ours, logits):
    atol = LOGITS * max(1, np.abs(logits).max())
    np.testing.assert_allclose(np.asarray(ours), logits, rtol=0, atol=atol)


def objective(**keys):
    """The ObjectiveConfig of the defaults and these keys."""
    return ObjectiveConfig(**{**base().objective.to_dict(), **keys})


def same_loss_and_gradients(model, oracle, out, batch, config, per_row=0.0):
    """out: what their model gives, with its loss; batch, config: what ours makes its loss of."""
    oracle.zero_grad()
    out.loss.backward()
    batch = {name: jnp.asarray(array) for name, array in batch.items()}
    total = batch["weights"].sum()

    def mean_loss(params):
        found = objective_loss(bind(model.module, params), batch, config, per_row=per_row * total)
        return found[0] / total

    loss, grads = jax.value_and_grad(mean_loss)(model.params)
    np.testing.assert_allclose(loss, out.loss.item(), rtol=2e-6)
    same_gradients(model, oracle, named(grads))


def same_gradients(model, oracle, ours):
    """Every gradient within 1e-3 of its largest entry, or of a thousandth of the model's."""
    weights = [(n, w) for n, w in oracle.named_parameters() if w.requires_grad]
    # Without one: experts that were not chosen.
    gradients = {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in weights}
    gradients = {name: grad.numpy() for name, grad in gradients.items()}
    largest = max(np.abs(grad).max() for grad in ours.values())
    buffers = [name for name in ours if name.endswith("selection_bias_E")]
    buffers += ["head/fixed_bias_V"] if model.config.head_bias == "fixed" else []
    assert not any(np.any(ours[name]) for name in buffers)
    shapes = {name: grad.shape for name, grad in ours.items()}
    found = slots(FAMILIES[oracle.config.model_type].rows(gradients), shapes, model.config)
    found = [slot for slot in found if slot.parts[0].parameter not in buffers]
    assert {slot.name for slot in found} == {*gradients}
    padding = oracle.get_input_embeddings().padding_idx
    for slot in found:
        for part, grad in slot.split(gradients[slot.name]):
            mine = np.array(ours[part.parameter][part.index])
            if part.parameter == "embed/table_VD" and padding is not None:
                mine[padding] = grad[padding]  # they learn nothing of what padding embeds
            allowed = 1e-3 * max(np.abs(grad).max(), 1e-3 * largest)
            assert np.abs(mine - grad).max() <= allowed, (slot.name, part.parameter)


def named(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def same_tensors(one, two):
    """Two folders hold the same tensors."""
    one, two = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert {*one} == {*two}
    for name, tensor in two.items():
        np.testing.assert_array_equal(one[name], tensor, name)
