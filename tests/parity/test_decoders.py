"""Every decoder beside transformers: logits, losses and every gradient; import and export.

The oracle is transformers' own model with random weights, in float32, eager attention, eval mode.
"""

import copy
import importlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm.config import ObjectiveConfig
from lm.hub.convert import export_model, import_model
from lm.hub.families import FAMILIES
from lm.hub.tensors import slots
from lm.nn.params import bind
from lm.objectives.causal import causal_loss
from lm.sampling.sample import generate
from tests.parity.decoders import BALANCED, CLASSES, GPT2, SIZES, VARIANTS, P, V

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
save_torch = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.parity

# What in their configuration is not of the model, or another way to write what is.
UNLIKE = (
    *("_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"),
    *(
        "max_window_layers",
        "attention_types",
        "dtype",
        "sliding_window_pattern",
        "_sliding_window_pattern",
    ),
)
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
LOGITS = 1e-5  # of the largest, or of 1; the project promises 1e-4


@pytest.fixture(params=VARIANTS, ids=VARIANTS, scope="module")
def saved(request, tmp_path_factory):
    """(transformers' model, the folder it was saved in); no bias is 0 and no scale is 1."""
    family, keys = VARIANTS[request.param]
    folder = tmp_path_factory.mktemp("hub")
    config_class, model_class = (getattr(transformers, name) for name in CLASSES[family])
    torch.manual_seed(sum(map(ord, request.param)))
    # A padding token's row of the embedding would get no gradient.
    oracle = model_class(config_class(**keys, **EAGER, pad_token_id=None)).eval()
    with torch.no_grad():
        biases = [b for name, b in oracle.named_buffers() if name.endswith("correction_bias")]
        for weight in [*oracle.parameters(), *biases]:
            weight.add_(0.1 * torch.randn_like(weight))
    oracle.save_pretrained(folder)
    return oracle, folder


@pytest.fixture(scope="module")
def model(saved):
    return import_model(saved[1])


def random_tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, V, shape)


def theirs(oracle, tokens, **arrays):
    arrays = {name: torch.tensor(array) for name, array in arrays.items()}
    with torch.no_grad():
        return oracle(torch.tensor(tokens), **arrays).logits.numpy()


def close(ours, logits):
    atol = LOGITS * max(1, np.abs(logits).max())
    np.testing.assert_allclose(np.asarray(ours), logits, rtol=0, atol=atol)


@pytest.mark.parametrize("length", [1, 7, P])
def test_logits(saved, model, length):
    oracle, _ = saved
    tokens = random_tokens(3, length)
    logits = model(tokens)
    assert logits.dtype == jnp.float32 and logits.shape == (3, length, V)
    close(logits, theirs(oracle, tokens))


def test_logits_of_a_padded_batch(saved, model):
    oracle, _ = saved
    tokens = random_tokens(3, 11)
    real = np.arange(11) < np.array([[11], [4], [7]])
    for mask in (real, real[:, ::-1]):  # on the right, on the left
        positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
        ours = model(tokens, positions=positions, padding_mask=mask)
        logits = theirs(oracle, tokens, attention_mask=mask * 1, position_ids=positions)
        close(np.asarray(ours)[mask], logits[mask])


def test_packed_documents_are_as_if_alone(saved, model):
    oracle, _ = saved
    lengths = (5, 1, 8)
    documents = [random_tokens(1, n, seed=n) for n in lengths]
    padding = np.zeros((1, 2), int)
    packed = np.concatenate([*documents, padding], 1)
    segments = np.concatenate([np.full(n, i + 1) for i, n in enumerate(lengths)] + [padding[0]])
    positions = np.concatenate([np.arange(n) for n in (*lengths, 2)])
    ours = model(packed, positions=positions[None], segments=segments[None])
    alone = np.concatenate([theirs(oracle, document) for document in documents], 1)
    close(ours[:, : sum(lengths)], alone)


def test_loss_and_every_gradient(saved, model):
    oracle, _ = saved
    tokens = random_tokens(3, 13)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    weights = random_tokens(3, 12, seed=1) % 4 > 0
    family = FAMILIES[oracle.config.model_type]
    routed = {"output_router_logits": True} if family.model_type in BALANCED else {}
    oracle.router_aux_loss_coef = 0.3
    labels = torch.tensor(np.where(weights, targets, -100))
    out = oracle(torch.tensor(inputs), labels=labels, shift_labels=labels, **routed)
    oracle.zero_grad()
    out.loss.backward()
    batch = {
        "tokens": jnp.asarray(inputs),
        "targets": jnp.asarray(targets),
        "weights": jnp.asarray(weights, jnp.float32),
    }
    objective = ObjectiveConfig(
        logits_chunk=0,
        label_smoothing=0.0,
        z_loss=0.0,
        router_aux_loss=0.3 if routed else 0.0,
        router_sequence_loss=0.0,
        router_z_loss=0.0,
        mtp_loss=0.0,
    )

    def mean_loss(params):
        minimised, *_ = causal_loss(bind(model.module, params), batch, objective)
        return minimised / batch["weights"].sum()

    loss, grads = jax.value_and_grad(mean_loss)(model.params)
    np.testing.assert_allclose(loss, out.loss.item(), rtol=2e-6)
    ours = named(grads)
    largest = max(np.abs(grad).max() for grad in ours.values())
    gradients = {name: weight.grad.numpy() for name, weight in oracle.named_parameters()}
    buffers = [name for name in ours if name.endswith("selection_bias_E")]
    assert not any(np.any(ours[name]) for name in buffers)
    shapes = {name: grad.shape for name, grad in ours.items()}
    found = slots(family.rows(gradients), shapes, model.config)
    found = [slot for slot in found if slot.parts[0].parameter not in buffers]
    assert {slot.name for slot in found} == {*gradients}
    for slot in found:
        for part, grad in slot.split(gradients[slot.name]):
            mine = ours[part.parameter][part.index]
            allowed = 1e-3 * max(np.abs(grad).max(), 1e-3 * largest)
            assert np.abs(mine - grad).max() <= allowed, (slot.name, part.parameter)


def named(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_greedy_decoding_gives_the_same_64_tokens(saved, model):
    oracle, _ = saved
    prompts = random_tokens(2, P - 64, seed=5)
    samples = generate(model, prompts.tolist(), 64, temperature=0.0)
    for prompt, (sample,) in zip(prompts, samples, strict=True):
        tokens = [*prompt]
        for _ in range(64):
            tokens.append(theirs(oracle, np.array([tokens]))[0, -1].argmax())
        assert [*sample.tokens] == tokens[len(prompt) :]


def test_an_export_is_loaded_by_transformers(saved, model, tmp_path):
    oracle, _ = saved
    tokens = random_tokens(2, 13)
    export_model(model, tmp_path / "out", oracle.config.model_type)
    kind = transformers.AutoModelForCausalLM
    again, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True, **EAGER)
    assert type(again) is type(oracle) and again.dtype == torch.float32
    assert not any(report.values()), report
    for name, weight in oracle.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    close(model(tokens), theirs(again.eval(), tokens))
    # What ours keeps of their configuration, they find again; defaults may be written out.
    found = again.config.to_dict()
    for name, value in oracle.config.to_dict().items():
        if name == "rope_parameters":
            assert found[name].items() >= value.items()
        elif value is not None and name not in UNLIKE:
            assert found[name] == value, name


def test_the_tensors_of_an_export_are_those_that_transformers_writes(saved, model, tmp_path):
    oracle, folder = saved
    export_model(model, tmp_path / "out", oracle.config.model_type)
    ours, hubs = (load_file(path / "model.safetensors") for path in (tmp_path / "out", folder))
    assert {*ours} == {*hubs}
    for name, tensor in hubs.items():
        np.testing.assert_array_equal(ours[name], tensor, name)


def test_the_layout_that_transformers_has_in_memory(saved, model, tmp_path):
    oracle, folder = saved
    state = {name: tensor.clone() for name, tensor in oracle.state_dict().items()}
    if model.config.tied_embedding:
        del state["lm_head.weight"]
    save_torch(state, tmp_path / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    jax.tree.map(np.testing.assert_array_equal, import_model(tmp_path).params, model.params)


def test_an_export_imported_is_equal_to_the_bit(saved, model, tmp_path):
    oracle, _ = saved
    export_model(model, tmp_path / "out", oracle.config.model_type, max_shard_size=5000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    again = import_model(tmp_path / "out")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_transformers_reads_our_shards(saved, model, tmp_path):
    oracle, _ = saved
    export_model(model, tmp_path / "out", oracle.config.model_type, max_shard_size=5000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, weight in oracle.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.parametrize("saved", ["gpt2", "llama-gqa", "deepseek_v3"], indirect=True)
def test_half_precision_stays(saved, tmp_path):
    folder = tmp_path / "half"
    copy.deepcopy(saved[0]).to(torch.bfloat16).save_pretrained(folder)
    model = import_model(folder)
    assert model.config.param_dtype == "bfloat16" and model.config.compute_dtype == "float32"
    kind, tokens = transformers.AutoModelForCausalLM, random_tokens(2, 9)
    wide = kind.from_pretrained(folder, dtype=torch.float32, **EAGER)
    close(model(tokens), theirs(wide.eval(), tokens))
    export_model(model, tmp_path / "out")
    assert kind.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def old_layout(oracle, folder):
    """The folder as the hub's own `gpt2` is: no prefix, masks as tensors."""
    state = {
        name.removeprefix("transformer."): tensor.clone()
        for name, tensor in oracle.state_dict().items()
        if name != "lm_head.weight"
    }
    size = oracle.config.n_positions
    for layer in range(oracle.config.n_layer):
        state[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(1, 1, size, size))
    save_torch(state, folder / "model.safetensors")


def test_the_hubs_own_gpt2_layout(tmp_path):
    config = transformers.GPT2Config(**GPT2, **EAGER)
    oracle = transformers.GPT2LMHeadModel(config).eval()
    oracle.save_pretrained(tmp_path)
    old_layout(oracle, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    kept = ("architectures", "model_type", "vocab_size", "n_embd", "n_layer", "n_head")
    content = {name: content[name] for name in (*kept, "n_positions")} | {"n_ctx": P}
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
    keys = {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
    oracle = transformers.LlamaForCausalLM(transformers.LlamaConfig(**keys)).eval()
    oracle.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["rope_parameters"], content["head_dim"], content["num_key_value_heads"]
    content |= {"rope_theta": 700.0, "rope_scaling": None, "torch_dtype": content.pop("dtype")}
    (tmp_path / "config.json").write_text(json.dumps(content))
    tokens = random_tokens(2, 10)
    close(import_model(tmp_path)(tokens), theirs(oracle, tokens))


TINY = {
    "openai-gpt": "gpt1:tiny",
    "cohere": "palm:tiny",
    "gemma3_text": "gemma3:tiny",
    "qwen2_moe": "qwen2:tiny_moe",
    "qwen3_moe": "qwen3:tiny_moe",
    "deepseek_v2": "deepseek:tiny_v2",
    "deepseek_v3": "deepseek:tiny",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_model_and_its_tokenizer_are_loaded_by_transformers(family, tmp_path):
    from lm.config import resolve
    from lm.data.tokenizer import train_tokenizer
    from lm.model import LanguageModel, skeleton
    from lm.nn.params import initialise

    texts = ["the cat sat on the mat; the dog did not."] * 3
    tokenizer = train_tokenizer("bpe", texts, 280)
    file, _, preset = TINY.get(family, f"{family}:tiny").partition(":")
    keys = importlib.import_module(f"configs.{file}").get_config(preset).unlock()
    # PaLM's preset keeps its table divided by what Cohere has no word for.
    scale = 1.0 if family == "cohere" else keys.model.embedding_scale
    keys.model.update(vocab_size=tokenizer.size, embedding_scale=scale)
    config = resolve(keys, tokenizer.size).model
    module, _ = skeleton(config)
    model = LanguageModel(config, module, initialise(module, seed=3), tokenizer)
    assert export_model(model, tmp_path / "out") == family
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", **EAGER).eval()
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the dog sat on the cat, 猫"
    tokens = tokenizer.encode(text)
    assert theirs_tokenizer(text)["input_ids"] == tokens.tolist()
    assert theirs_tokenizer.decode(tokens) == text
    assert oracle.config.eos_token_id == tokenizer.end_of_text
    close(model(tokens[None]), theirs(oracle, tokens[None]))


def with_prediction(tmp_path):
    """(DeepSeek V3, its module for one more token, the folder that holds both as the hub does)."""
    from transformers.modeling_layers import MtpModel

    keys = {**VARIANTS["deepseek_v3"][1], "num_nextn_predict_layers": 1}
    torch.manual_seed(3)
    main = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**keys, **EAGER)).eval()
    extra = MtpModel(main, 1).eval()
    with torch.no_grad():
        for weight in {*main.parameters(), *extra.layers.parameters()}:
            weight.add_(0.1 * torch.randn_like(weight))
    main.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    start = f"model.layers.{keys['num_hidden_layers']}."
    for name, tensor in extra.layers[0].state_dict().items():
        name = name.replace("mtp_block.", "").replace("post_norm", "shared_head.norm")
        if name.endswith("gate_up_proj"):
            parts = zip(("gate_proj", "up_proj"), tensor.chunk(2, 1), strict=True)
        else:
            parts = [(name.rsplit(".", 1)[1], tensor)]
        for part, whole in parts:
            if ".experts." not in name:
                state[start + name] = whole.numpy()
                continue
            for number, expert in enumerate(whole):
                state[f"{start}mlp.experts.{number}.{part}.weight"] = expert.numpy().copy()
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    return main, extra, tmp_path


def test_the_prediction_of_one_more_token(tmp_path):
    main, extra, folder = with_prediction(tmp_path / "hub")
    model, tokens = import_model(folder), random_tokens(2, 12)
    assert model.config.mtp_depth == 1
    now, after = tokens[:, :-1], tokens[:, 1:]
    places = torch.arange(1, 12)[None]
    with torch.no_grad():
        hidden = main.model(torch.tensor(now)).last_hidden_state
        hidden = extra.forward_layer(0, hidden, places, None, input_ids=torch.tensor(after))
        expected = main.lm_head(hidden).numpy()
    module = bind(model.module, model.params)
    hidden_BTD, *_ = module.hidden(jnp.asarray(now))
    hidden_BTD, _ = module.ahead(hidden_BTD, jnp.asarray(after))
    close(module.logits(hidden_BTD), expected)
    close(model(tokens), theirs(main, tokens))
    export_model(model, tmp_path / "out")
    ours, hubs = (load_file(path / "model.safetensors") for path in (tmp_path / "out", folder))
    assert {*ours} == {*hubs}
    for name, tensor in hubs.items():
        np.testing.assert_array_equal(ours[name], tensor, name)
    # Without its tensors, or without the key, it is as if it were not there.
    main.save_pretrained(folder)
    assert import_model(folder).config.mtp_depth == 0
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "num_nextn_predict_layers": 0}))
    save_file(hubs, folder / "model.safetensors")
    assert import_model(folder).config.mtp_depth == 0


def test_relative_positions_are_xlnets():
    """XLNet that looks back only has Transformer-XL's attention, which is Gopher's."""
    from configs.base import base
    from lm.config import resolve
    from lm.model import skeleton

    keys = {"vocab_size": V, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}
    torch.manual_seed(4)
    config = transformers.XLNetConfig(**keys, attn_type="uni", ff_activation="gelu")
    oracle = transformers.XLNetModel(config).eval()
    with torch.no_grad():
        for weight in oracle.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    preset = base()
    preset.model.update(vocab_size=V, d_model=16, num_layers=2, num_heads=2, d_ff=24)
    preset.model.update(position="relative", norm_placement="post", final_norm=False)
    preset.model.update(norm_eps=1e-12, activation="gelu", qkv_bias=False)
    preset.model.update(attention_output_bias=False)
    module, _ = skeleton(resolve(preset, V).model)
    state = {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}

    def stacked(name, *order):
        layers = [state[f"layer.{number}.{name}"] for number in range(2)]
        return np.stack([layer.transpose(order) if order else layer for layer in layers])

    def norm(name):
        return {"scale_D": stacked(f"{name}.weight"), "bias_D": stacked(f"{name}.bias")}

    attention = {
        "query_DNH": stacked("rel_attn.q"),
        "key_DKH": stacked("rel_attn.k"),
        "value_DKH": stacked("rel_attn.v"),
        "output_NHD": stacked("rel_attn.o", 1, 2, 0),
        "position_DNH": stacked("rel_attn.r"),
        "content_bias_NH": stacked("rel_attn.r_w_bias"),
        "position_bias_NH": stacked("rel_attn.r_r_bias"),
    }
    feedforward = {
        "up_DF": stacked("ff.layer_1.weight", 1, 0),
        "up_bias_F": stacked("ff.layer_1.bias"),
        "down_FD": stacked("ff.layer_2.weight", 1, 0),
        "down_bias_D": stacked("ff.layer_2.bias"),
    }
    params = {
        "embed": {"table_VD": state["word_embedding.weight"]},
        "layers": {
            "attention": attention,
            "feedforward": feedforward,
            "attention_residual_norm": norm("rel_attn.layer_norm"),
            "feedforward_residual_norm": norm("ff.layer_norm"),
        },
    }
    params = jax.tree.map(jnp.asarray, params)
    tokens = random_tokens(2, 13)
    with torch.no_grad():
        expected = oracle(torch.tensor(tokens)).last_hidden_state.numpy()
    hidden_BTD, *_ = bind(module, params).hidden(jnp.asarray(tokens))
    close(hidden_BTD, expected)
