"""lm.load, what it refuses, and what `import lm` costs."""

import dataclasses
import functools
import json
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from configs.base import base
from lm.checkpoint import Checkpoints
from lm.config import resolve
from lm.data.tokenizer import of_bytes
from lm.errors import RunError, UserError
from lm.hub.convert import export_model
from lm.mesh import make_mesh
from lm.model import LanguageModel, skeleton
from lm.nn.params import bind, initialise
from tests.conftest import ROOT
from tests.nn.tiny import STACKS

TOKENS = np.random.default_rng(0).integers(0, 256, (4, 9))


def make_config(**changes):
    keys = base()
    keys.model.update(num_layers=2, num_heads=4, num_kv_heads=2, d_model=16, position="rope")
    keys.model.update(vocab_size=260, **changes)
    keys.data.sequence_length = 12
    for name, value in STACKS.get(keys.model.stack, {}).items():
        section, key = name.split(".")
        keys[section][key] = value
    return resolve(keys, of_bytes().size)


def make_model(seed=0, mesh=None, **changes):
    config = make_config(**changes).model
    module, _ = skeleton(config, mesh)
    return LanguageModel(config, module, initialise(module, seed, mesh), of_bytes(), mesh)


shared = functools.cache(make_model)


def write_run(folder, **changes):
    """A workdir with checkpoints 3 and 5, of two seeds."""
    folder.mkdir()
    config = make_config(**changes)
    content = {**dataclasses.asdict(config), "data_key": "abc"}
    (folder / "config.json").write_text(json.dumps(content))
    of_bytes().save(folder)
    with Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints:
        for step in (3, 5):
            params = make_model(seed=step, **changes).params
            state = {"step": jnp.int32(step), "params": params, "moments": params}
            checkpoints.save(step, state, wait=True)
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "a")


def equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_run_is_loaded_with_its_tokenizer(workdir):
    model = lm.load(workdir)
    equal(model.params, make_model(seed=5).params)
    assert model.config == make_config().model
    assert model.tokenizer.encode("aé").tolist() == [97, 195, 169]
    equal(lm.load(str(workdir), step=3).params, make_model(seed=3).params)
    assert lm.load(workdir, compute_dtype="bfloat16").config.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    "sizes", [{"tensor": 2}, {"data": 2, "fsdp": 2}, {"fsdp": 2, "tensor": 2}, {"tensor": 1}]
)
def test_a_model_on_a_mesh_gives_the_same_logits(workdir, sizes):
    one, many = lm.load(workdir), lm.load(workdir, mesh=sizes)
    assert {axis: many.mesh.shape[axis] for axis in sizes} == sizes
    equal(many.params, one.params)
    query = many.params["layers"]["attention"]["query_DNH"]
    share = query.size // (sizes.get("fsdp", 1) * sizes.get("tensor", 1))
    assert query.addressable_shards[0].data.size == share
    packed = {"positions": [[0, 1, 2, 3, 0, 1, 2, 0, 0]] * 4}
    packed["segments"] = [[1, 1, 1, 1, 2, 2, 2, 0, 0]] * 4
    for arrays in ({}, packed):
        logits, expected = many(TOKENS, **arrays), one(TOKENS, **arrays)
        np.testing.assert_allclose(logits, expected, atol=1e-6)
        assert int(logits[1, -1].argmax()) == int(expected[1, -1].argmax())


def test_a_row_alone_on_a_mesh(workdir):
    row, positions = TOKENS[:1], np.arange(9)[None]
    expected = lm.load(workdir)(row)
    model = lm.load(workdir, mesh={"tensor": 2})
    np.testing.assert_allclose(model(row), expected, atol=1e-6)
    np.testing.assert_allclose(model(row, positions=positions), expected, atol=1e-6)


def test_a_folder_of_the_hub_is_loaded(tmp_path):
    changes = {"norm": "rms_norm", "norm_bias": False, "gated": True}
    model = make_model(**changes)
    export_model(model, tmp_path / "hub")
    again = lm.load(tmp_path / "hub")
    equal(again.params, model.params)
    np.testing.assert_array_equal(again(TOKENS), model(TOKENS))
    assert again.tokenizer.fingerprint == of_bytes().fingerprint
    (tmp_path / "hub" / "tokenizer.json").unlink()
    assert lm.load(tmp_path / "hub").tokenizer is None
    with pytest.raises(UserError, match=r"step=3: .* is no run"):
        lm.load(tmp_path / "hub", step=3)


def test_logits_are_the_modules():
    model = make_model(compute_dtype="bfloat16")
    logits = model(TOKENS)
    assert logits.shape == (4, 9, 260) and logits.dtype == jnp.float32
    expected = bind(model.module, model.params)(jnp.asarray(TOKENS))
    np.testing.assert_allclose(logits, expected, atol=0.02)
    np.testing.assert_array_equal(model(TOKENS.tolist()), logits)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_padded_row_is_as_if_it_were_alone(position):
    model, real = make_model(position=position), np.arange(9) < 6
    for mask in (real, real[::-1]):
        tokens, positions = np.zeros((1, 9), int), np.zeros((1, 9), int)
        tokens[0, mask], positions[0, mask] = TOKENS[0, :6], np.arange(6)
        logits = model(tokens, padding_mask=mask[None], positions=positions)
        np.testing.assert_allclose(logits[:, mask], model(TOKENS[:1, :6]), atol=1e-5)
    np.testing.assert_array_equal(
        model(TOKENS, padding_mask=[[True] * 9] * 4), model(TOKENS, segments=[[1] * 9] * 4)
    )


def test_parameters_of_another_dtype():
    model = make_model().astype("bfloat16")
    assert model.config.param_dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
    np.testing.assert_allclose(model(TOKENS), make_model()(TOKENS), atol=0.05)


def test_the_forward_pass_is_compiled_once():
    model = make_model()
    model(TOKENS)
    model(TOKENS + 1)
    assert model._forward._cache_size() == 1


@pytest.mark.parametrize(
    ("tokens", "arrays", "message"),
    [
        ([1, 2], {}, r"tokens of shape \(2,\) and dtype int64 must be integers \(B, T\)"),
        ([[[1]]], {}, "tokens of shape"),
        ([[]], {}, "tokens of shape"),
        ([[1.0]], {}, "dtype float64"),
        ("abc", {}, "tokens of shape"),
        ([[1, 2], [3]], {}, "rows of unequal length"),
        ([[0, 260]], {}, r"tokens hold 260, which is not in \[0, 260\)"),
        ([[-1, 3]], {}, "tokens hold -1"),
        ([[1] * 13], {}, "13 tokens are more than the model's 12 positions"),
        ([[1, 2]], {"positions": [[0]]}, r"positions of shape \(1, 1\) must have the shape of tok"),
        ([[1, 2]], {"positions": [[0, 12]]}, r"positions hold 12, which is not in \[0, 12\)"),
        ([[1, 2]], {"positions": [[0.0, 1.0]]}, "positions of shape"),
        ([[1, 2]], {"segments": [[1, -1]]}, "segments hold -1"),
        ([[1, 2]], {"segments": [[1], [1]]}, "segments of shape"),
        ([[1, 2]], {"padding_mask": [[True]]}, "padding_mask of shape"),
        ([[1, 2]], {"padding_mask": [[1, 2]]}, r"padding_mask hold 2, which is not in \[0, 2\)"),
        (
            [[1, 2]],
            {"padding_mask": [[True, True]], "segments": [[1, 1]]},
            "padding_mask and segments: give one",
        ),
    ],
)
def test_what_cannot_be_tokens(tokens, arrays, message):
    model = make_model(position="learned", max_positions=12)
    with pytest.raises(UserError, match=message) as caught:
        model(tokens, **arrays)
    assert "\n" not in str(caught.value)


ENCODER = {"stack": "encoder", "position": "learned", "initializer_std": 0.3}
BERT = {"pooler": True, "next_sentence": True, "token_types": 2, "global_attention": True}
BERT |= ENCODER | {"attention_pattern": "local", "window": 4, "num_layers": 1}
BOTH = {"stack": "encoder_decoder", "num_layers": 1, "initializer_std": 0.3}


def test_states_texts_and_pairs_are_the_layers_outputs():
    model = shared(**BERT)
    params, rows = model.params, {"token_types": (TOKENS > 99).astype(int)}
    states = np.asarray(model.hidden_states(TOKENS, **rows))
    assert states.shape == (4, 9, 16)
    close = {"rtol": 1e-4, "atol": 1e-5}
    table = params["embed"]["table_VD"]
    np.testing.assert_allclose(model(TOKENS, **rows), states @ table.T, **close)
    pooled = np.tanh(states[:, 0] @ params["pooler"]["kernel_DM"] + params["pooler"]["bias_M"])
    np.testing.assert_allclose(model.pooled(TOKENS, **rows), pooled, **close)
    follows = pooled @ params["next_sentence"]["kernel_DC"] + params["next_sentence"]["bias_C"]
    np.testing.assert_allclose(model.next_sentence(TOKENS, **rows), follows, **close)
    assert follows.shape == (4, 2)


def test_rows_that_some_models_have_are_read_on_any_mesh():
    one, mesh = shared(**BERT), make_mesh(2, 2, 2)
    many = make_model(mesh=mesh, **BERT)
    rows = {"token_types": np.arange(9) // 5, "global_mask": np.arange(9) == 2}
    rows = {name: np.tile(row, (4, 1)) for name, row in rows.items()}
    expected = one(TOKENS, **rows)
    np.testing.assert_allclose(many(TOKENS, **rows), expected, atol=1e-5)
    for name in rows:
        without = one(TOKENS, **{**rows, name: np.zeros((4, 9), int)})
        assert abs(without - expected).max() > 0.01, name


@pytest.mark.parametrize(("sizes", "left"), [((1, 1, 1), False), ((2, 2, 2), True)])
def test_a_target_from_a_source(sizes, left):
    """Padded, on either side, against a text alone."""
    mesh = make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    one, model = shared(**BOTH), make_model(mesh=mesh, **BOTH)
    source, target = np.zeros((2, 4, 9), int)
    read, written = np.arange(9) < 6, np.arange(9) < 4
    rows = {}
    if left:
        read, written = read[::-1], written[::-1]
        rows = {"positions": read.cumsum() - read, "target_positions": written.cumsum() - written}
    rows |= {"padding_mask": read, "target_padding_mask": written}
    source[:, read], target[:, written] = TOKENS[:, :6], TOKENS[:, 5:]
    found = model(source, target, **{name: np.tile(row, (4, 1)) for name, row in rows.items()})
    alone = one(TOKENS[:1, :6], TOKENS[:1, 5:])
    np.testing.assert_allclose(found[:1, written], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "arguments", "rows", "message"),
    [
        (BOTH, [TOKENS], {}, r"'encoder_decoder' reads source and target; give model\(source, tar"),
        (BOTH, [TOKENS, TOKENS[:2]], {}, "target of 2 rows .* source of 4"),
        (BOTH, [TOKENS, [[1.0]]], {}, "target of shape"),
        (BOTH, [TOKENS, [[260]] * 4], {}, r"target hold 260, which is not in \[0, 260\)"),
        (BOTH, [TOKENS, TOKENS], {"target_segments": [[1]]}, "shape of target"),
        (
            BOTH,
            [TOKENS, TOKENS],
            {"target_prefix": TOKENS},
            "takes no target_prefix. Did you mean",
        ),
        (BOTH, [TOKENS, TOKENS], {"target_position": TOKENS}, "Did you mean 'target_positions'"),
        (
            BOTH,
            [TOKENS, TOKENS],
            {"target_segments": TOKENS, "target_padding_mask": TOKENS},
            "padding_mask and target_segments: give one",
        ),
        ({}, [TOKENS, TOKENS], {}, r"'decoder' reads tokens; give model\(tokens\)"),
        (ENCODER, [TOKENS, TOKENS], {}, r"'encoder' reads tokens; give model\(tokens\)"),
        (ENCODER, [TOKENS], {"target_segments": TOKENS}, "takes no target_segments"),
        (BERT, [TOKENS], {"token_type": TOKENS}, "takes no token_type. .*mean 'token_types'"),
        (BERT, [TOKENS], {"token_types": TOKENS}, r"token_types hold .* not in \[0, 2\)"),
        (BERT, [TOKENS], {"global_mask": TOKENS}, r"global_mask hold .* not in \[0, 2\)"),
        (BERT, [TOKENS], {"global_mask": [[1]]}, "global_mask of shape .* must have the shape"),
        (ENCODER, [TOKENS], {"token_types": TOKENS}, "takes no token_types. One of: positions"),
        (ENCODER, [TOKENS], {"global_mask": TOKENS}, "takes no global_mask"),
        ({}, [TOKENS], {"prefix": TOKENS}, "takes no prefix"),
        (
            {**ENCODER, "position_offset": 2, "max_positions": 14},
            [[[1] * 13]],
            {},
            "13 tokens are more than the model's 12 positions",
        ),
    ],
)
def test_what_a_stack_does_not_read(changes, arguments, rows, message):
    with pytest.raises(UserError, match=message) as caught:
        shared(**changes)(*arguments, **rows)
    assert "\n" not in str(caught.value)


def test_texts_and_pairs_need_their_heads():
    for changes in (ENCODER, {}, BOTH):
        with pytest.raises(UserError, match="the model has no pooler"):
            shared(**changes).pooled(TOKENS)
    with pytest.raises(UserError, match="the model has no next_sentence"):
        shared(**ENCODER).next_sentence(TOKENS)
    model = shared(**BERT)
    config = dataclasses.replace(model.config, head="none")
    headless = dataclasses.replace(model, config=config, module=skeleton(config)[0])
    np.testing.assert_array_equal(headless.hidden_states(TOKENS), model.hidden_states(TOKENS))
    with pytest.raises(UserError, match="the model has no head"):
        headless(TOKENS)


def test_rotated_positions_have_no_end():
    assert make_model()([[1] * 13]).shape == (1, 13, 260)


def test_rows_that_do_not_divide_over_the_mesh(workdir):
    with pytest.raises(UserError, match=r"3 rows do not divide over the 2 data shards.*give 4"):
        lm.load(workdir, mesh={"fsdp": 2})(TOKENS[:3])


def test_folders_that_hold_no_model(workdir, tmp_path):
    def told(message, path=tmp_path, **arguments):
        with pytest.raises(UserError, match=message) as caught:
            lm.load(path, **arguments)
        assert "\n" not in str(caught.value)

    told("is not a folder", tmp_path / "missing")
    told("is not a folder", workdir / "config.json")
    told("there is no .*config.json")
    (tmp_path / "config.json").write_text("{")
    told("is not JSON")
    (tmp_path / "config.json").write_text('{"a": 1}')
    told("neither a run's")
    content = json.loads((workdir / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model": {**content["model"], "n_head": 3}}))
    told("section model: n_head is not a key")
    (tmp_path / "config.json").write_text(json.dumps(content))
    told("there is no tokenizer")
    of_bytes().save(tmp_path)
    told("has no checkpoint yet")
    told("has no checkpoint 4; it has: 3, 5", workdir, step=4)
    told("mesh has no axis 'tensors'. Did you mean 'tensor'", workdir, mesh={"tensors": 2})
    told("needs .*1000 devices", workdir, mesh={"tensor": 1000})
    told("does not divide", workdir, mesh={"tensor": 8})


def test_a_run_whose_checkpoints_are_all_damaged(workdir, tmp_path, capsys):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    with pytest.raises(RunError, match="No good checkpoint"):
        lm.load(tmp_path)
    assert "is damaged and not used" in capsys.readouterr().err


def test_float64_needs_a_switch(workdir):
    with pytest.raises(UserError, match="JAX_ENABLE_X64=1"):
        skeleton(make_config(param_dtype="float64").model)


def test_the_public_names():
    from lm.model import load
    from lm.nn.config import TransformerConfig
    from lm.sampling.sample import generate

    assert (lm.load, lm.generate) == (load, generate)
    assert (lm.LanguageModel, lm.TransformerConfig) == (LanguageModel, TransformerConfig)
    assert {*lm.__all__} <= {*dir(lm)}
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = lm.lode
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert lm.__version__ == project["version"]


def test_import_lm_imports_nothing_heavy():
    code = "import lm, lm.errors, sys; print({'jax', 'numpy', 'flax'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
