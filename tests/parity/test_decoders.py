"""GPT-2 and Llama beside transformers: logits, losses and every gradient; import and export.

The oracle is transformers' own model with random weights, in float32, eager attention, eval mode.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import ObjectiveConfig
from lm.hub import family as tables
from lm.hub.convert import export_model, import_model
from lm.hub.families import FAMILIES
from lm.nn.params import bind
from lm.objectives.causal import causal_loss

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

V = 53  # tokens
# What in their configuration is not of the model.
UNLIKE = ("_name_or_path", "bos_token_id", "eos_token_id", "transformers_version")
LOGITS = 1e-5  # the project promises 1e-4

GPT2 = {"vocab_size": V, "n_positions": 24, "n_embd": 20, "n_layer": 3, "n_head": 4}
LLAMA = {
    "vocab_size": V,
    "max_position_embeddings": 24,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
VARIANTS = {
    "gpt2": ("gpt2", GPT2),
    "gpt2-untied-relu-wide": (
        "gpt2",
        {**GPT2, "tie_word_embeddings": False, "activation_function": "relu", "n_inner": 36},
    ),
    "gpt2-one-layer": ("gpt2", {**GPT2, "n_layer": 1, "n_head": 1, "layer_norm_epsilon": 1e-3}),
    "llama-mha": ("llama", LLAMA),
    "llama-gqa": ("llama", {**LLAMA, "num_key_value_heads": 2, "rms_norm_eps": 1e-3}),
    "llama-mqa-wide-heads": ("llama", {**LLAMA, "num_key_value_heads": 1, "head_dim": 10}),
    "llama-gqa-tied-theta": (
        "llama",
        {
            **LLAMA,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "llama-biases-gelu": (
        "llama",
        {**LLAMA, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
    ),
}
CLASSES = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
}


@pytest.fixture(params=VARIANTS, ids=VARIANTS)
def saved(request, tmp_path):
    """(transformers' model, the folder it was saved in); no bias is 0 and no scale is 1."""
    family, keys = VARIANTS[request.param]
    config_class, model_class = (getattr(transformers, name) for name in CLASSES[family])
    torch.manual_seed(sum(map(ord, request.param)))
    config = config_class(**keys, attn_implementation="eager")
    oracle = model_class(config).eval()
    with torch.no_grad():
        for weight in oracle.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    oracle.save_pretrained(tmp_path / "hub")
    return oracle, tmp_path / "hub"


def random_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, V, shape)


def theirs(oracle, tokens, **arrays):
    arrays = {name: torch.tensor(array) for name, array in arrays.items()}
    with torch.no_grad():
        return oracle(torch.tensor(tokens), **arrays).logits.numpy()


def close(ours, logits):
    np.testing.assert_allclose(np.asarray(ours), logits, rtol=0, atol=LOGITS)


@pytest.mark.parametrize("length", [1, 7, 24])
def test_logits(saved, length):
    oracle, folder = saved
    tokens = random_tokens(3, length)
    logits = import_model(folder)(tokens)
    assert logits.dtype == jnp.float32 and logits.shape == (3, length, V)
    close(logits, theirs(oracle, tokens))


def test_logits_of_a_padded_batch(saved):
    oracle, folder = saved
    model, tokens = import_model(folder), random_tokens(3, 11)
    real = np.arange(11) < np.array([[11], [4], [7]])
    for mask in (real, real[:, ::-1]):  # on the right, on the left
        positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
        ours = model(tokens, positions=positions, segments=mask.astype(int))
        logits = theirs(oracle, tokens, attention_mask=mask * 1, position_ids=positions)
        close(np.asarray(ours)[mask], logits[mask])


def test_packed_documents_are_as_if_alone(saved):
    oracle, folder = saved
    lengths = (5, 1, 8)
    documents = [random_tokens(1, n, seed=n) for n in lengths]
    padding = np.zeros((1, 2), int)
    packed = np.concatenate([*documents, padding], 1)
    segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)] + [padding[0]])
    positions = np.concatenate([np.arange(n) for n in (*lengths, 2)])
    ours = import_model(folder)(packed, positions=positions[None], segments=segments[None])
    alone = np.concatenate([theirs(oracle, document) for document in documents], 1)
    close(ours[:, : sum(lengths)], alone)


def test_loss_and_every_gradient(saved):
    oracle, folder = saved
    model, tokens = import_model(folder), random_tokens(3, 12)
    labels = np.where(random_tokens(3, 12, seed=1) % 4 == 0, -100, tokens)
    out = oracle(torch.tensor(tokens), labels=torch.tensor(labels))
    out.loss.backward()
    batch = {
        "tokens": jnp.asarray(tokens[:, :-1]),
        "targets": jnp.asarray(tokens[:, 1:]),
        "weights": jnp.asarray(labels[:, 1:] >= 0, jnp.float32),
    }
    objective = ObjectiveConfig(logits_chunk=0, label_smoothing=0.0, z_loss=0.0)

    def mean_loss(params):
        minimised, _ = causal_loss(bind(model.module, params), batch, objective)
        return minimised / batch["weights"].sum()

    loss, grads = jax.value_and_grad(mean_loss)(model.params)
    np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-6)
    ours = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
    }
    largest = max(np.abs(grad).max() for grad in ours.values())
    gradients = {name: weight.grad.numpy() for name, weight in oracle.named_parameters()}
    family = FAMILIES[oracle.config.model_type]
    slots = tables.slots(family, {name: grad.shape for name, grad in ours.items()})
    assert {slot.name for slot in slots} == {*gradients}
    for slot in slots:
        for part, grad in slot.split(gradients[slot.name]):
            mine = ours[part.parameter][part.index]
            allowed = 1e-3 * max(np.abs(grad).max(), 1e-3 * largest)
            assert np.abs(mine - grad).max() <= allowed, (slot.name, part.parameter)


def test_an_export_is_loaded_by_transformers(saved, tmp_path):
    oracle, folder = saved
    model, tokens = import_model(folder), random_tokens(2, 13)
    assert export_model(model, tmp_path / "out") == oracle.config.model_type
    kind = transformers.AutoModelForCausalLM
    again, report = kind.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert type(again) is type(oracle) and again.dtype == torch.float32
    assert not any(report.values()), report
    for name, weight in oracle.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    close(model(tokens), theirs(again.eval(), tokens))
    # What ours keeps of their configuration, they find again.
    for name, value in oracle.config.to_dict().items():
        if value is not None and name not in UNLIKE:
            assert again.config.to_dict()[name] == value, name


def test_an_export_imported_is_equal_to_the_bit(saved, tmp_path):
    _, folder = saved
    model = import_model(folder)
    export_model(model, tmp_path / "out", max_shard_size=5000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    again = import_model(tmp_path / "out")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_transformers_reads_our_shards(saved, tmp_path):
    oracle, folder = saved
    export_model(import_model(folder), tmp_path / "out", max_shard_size=5000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, weight in oracle.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.parametrize("saved", ["gpt2", "llama-gqa"], indirect=True)
def test_half_precision_stays(saved, tmp_path):
    oracle, folder = saved
    oracle.to(torch.bfloat16).save_pretrained(folder)
    model = import_model(folder)
    assert model.config.param_dtype == "bfloat16" and model.config.compute_dtype == "float32"
    kind, tokens = transformers.AutoModelForCausalLM, random_tokens(2, 9)
    wide = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    close(model(tokens), theirs(wide.eval(), tokens))
    export_model(model, tmp_path / "out")
    assert kind.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def old_layout(oracle, folder):
    """The folder as the hub's own `gpt2` is: no prefix, masks as tensors."""
    from safetensors.torch import save_file

    state = {
        name.removeprefix("transformer."): tensor.clone()
        for name, tensor in oracle.state_dict().items()
        if name != "lm_head.weight"
    }
    size = oracle.config.n_positions
    for layer in range(oracle.config.n_layer):
        state[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, size, size))
    save_file(state, folder / "model.safetensors")


def test_the_hubs_own_gpt2_layout(tmp_path):
    config = transformers.GPT2Config(**GPT2, attn_implementation="eager")
    oracle = transformers.GPT2LMHeadModel(config).eval()
    oracle.save_pretrained(tmp_path)
    old_layout(oracle, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    kept = ("architectures", "model_type", "vocab_size", "n_embd", "n_layer", "n_head")
    content = {name: content[name] for name in (*kept, "n_positions")} | {"n_ctx": 24}
    (tmp_path / "config.json").write_text(json.dumps(content))
    tokens = random_tokens(2, 10)
    close(import_model(tmp_path)(tokens), theirs(oracle, tokens))


def test_a_tied_config_whose_files_hold_two_tables(tmp_path):
    kind = transformers.GPT2LMHeadModel
    kind(transformers.GPT2Config(**GPT2, tie_word_embeddings=False)).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "tie_word_embeddings": True}))
    oracle = kind.from_pretrained(tmp_path).eval()
    tokens = random_tokens(2, 10)
    close(import_model(tmp_path)(tokens), theirs(oracle, tokens))


def test_a_legacy_llama_config(tmp_path):
    keys = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
    oracle = transformers.LlamaForCausalLM(transformers.LlamaConfig(**keys)).eval()
    oracle.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["rope_parameters"], content["head_dim"], content["num_key_value_heads"]
    content |= {"rope_theta": 700.0, "rope_scaling": None, "torch_dtype": content.pop("dtype")}
    (tmp_path / "config.json").write_text(json.dumps(content))
    tokens = random_tokens(2, 10)
    close(import_model(tmp_path)(tokens), theirs(oracle, tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_model_and_its_tokenizer_are_loaded_by_transformers(family, tmp_path):
    from configs.base import base
    from lm.config import resolve
    from lm.data.tokenizer import train_tokenizer
    from lm.model import LanguageModel, skeleton
    from lm.nn.params import initialise

    texts = ["the cat sat on the mat; the dog did not."] * 3
    tokenizer = train_tokenizer("bpe", texts, 280)
    keys = base()
    keys.model.update(num_layers=2, num_heads=4, d_model=16)
    if family == "llama":
        keys.model.update(position="rope", norm="rms_norm", norm_bias=False, gated=True)
    config = resolve(keys, tokenizer.size).model
    module, _ = skeleton(config)
    model = LanguageModel(config, module, initialise(module, seed=3), tokenizer)
    assert export_model(model, tmp_path / "out") == family
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the dog sat on the cat, 猫"
    tokens = tokenizer.encode(text)
    assert theirs_tokenizer(text)["input_ids"] == tokens.tolist()
    assert theirs_tokenizer.decode(tokens) == text
    assert oracle.config.eos_token_id == tokenizer.end_of_text
    close(model(tokens[None]), theirs(oracle, tokens[None]))
