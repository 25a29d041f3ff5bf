"""Every decoder beside transformers: logits, losses and every gradient, greedy decoding.

The oracle is transformers' own model with random weights, in float32, eager attention, eval mode.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm.hub.convert import export_model, import_model
from lm.nn.params import bind
from lm.sampling.sample import generate
from tests.parity.comparing import (
    EAGER,
    close,
    objective,
    random_tokens,
    same_loss_and_gradients,
    same_tensors,
    saved_model,
    theirs,
    torch,
    transformers,
)
from tests.parity.models import BALANCED, DECODERS, GPT2, SIZES, P, V

save_torch = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.parity


@pytest.fixture(params=DECODERS, ids=DECODERS, scope="module")
def saved(request, tmp_path_factory):
    return saved_model(request.param, tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def model(saved):
    return import_model(saved[1])


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
        logits = theirs(oracle, tokens, padding_mask=mask, positions=positions)
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
    routed = oracle.config.model_type in BALANCED
    asks = {"output_router_logits": True} if routed else {}
    oracle.router_aux_loss_coef = 0.3
    labels = torch.tensor(np.where(weights, targets, -100))
    out = oracle(torch.tensor(inputs), labels=labels, shift_labels=labels, **asks)
    batch = {"tokens": inputs, "targets": targets, "weights": weights.astype(np.float32)}
    config = objective(router_aux_loss=0.3 if routed else 0.0)
    same_loss_and_gradients(model, oracle, out, batch, config)


def test_greedy_decoding_gives_the_same_64_tokens(saved, model):
    oracle, _ = saved
    prompts = random_tokens(2, P - 64, seed=5)
    samples = generate(model, prompts.tolist(), 64, temperature=0.0)
    for prompt, (sample,) in zip(prompts, samples, strict=True):
        tokens = [*prompt]
        for _ in range(64):
            tokens.append(theirs(oracle, np.array([tokens]))[0, -1].argmax())
        assert [*sample.tokens] == tokens[len(prompt) :]


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


def with_prediction(tmp_path):
    """(DeepSeek V3, its module for one more token, the folder that holds both as the hub does)."""
    from transformers.modeling_layers import MtpModel

    keys = {**DECODERS["deepseek_v3"][1], "num_nextn_predict_layers": 1}
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
    same_tensors(tmp_path / "out", folder)
    hubs = load_file(folder / "model.safetensors")
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
