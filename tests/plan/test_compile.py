"""The compiled train step, on fake devices here and on hardware that is not there."""

import math

import jax
import pytest

from lm.data.loader import Batches, place
from lm.data.store import open_data
from lm.errors import RunError
from lm.mesh import laid_out, make_mesh, sharding, use_mesh
from lm.objectives.builder import make_examples
from lm.plan.compile import (
    _exhausted,
    abstract_batch,
    bytes_per_device,
    compile_step,
    compiled_costs,
)
from lm.plan.topology import topology_devices
from tests.nn.tiny import tiny

LAYERS = 3
KEYS = {"model.num_layers": LAYERS, "model.remat": "full", "data.sequence_length": 16}
ENCODER = {"model.stack": "encoder", "data.special_tokens": "mask"}
BOTH = {"model.stack": "encoder_decoder", "data.special_tokens": "sentinels"}
PAIRS = {"objective.next_sentence": True, "model.next_sentence": True, "model.pooler": True}
TEXTS = {"objective.kind": "contrastive", "model.residual_dropout": 0.1}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"data.separate_documents": False},
        BOTH,
        {**BOTH, "objective.kind": "denoising", "objective.noise": "rotation"},
        {**ENCODER, **PAIRS, "model.token_types": 2},
        {**ENCODER, **TEXTS},
    ],
)
def test_a_batch_that_is_not_there_is_as_one_that_is(keys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The cat sat. A dog ran, and the sun rose. " * 300)
    config = tiny({**KEYS, "model.vocab_size": 400, "data.tokenizer_size": 400, **keys})
    config.data.__dict__.update(path=str(text), cache=str(tmp_path / "cache"))
    data, mesh = open_data(config.data), make_mesh(devices=jax.devices()[:1])
    examples = make_examples(config.objective, config.data, config.model, data.tokenizer)
    batches = Batches(data.train, config.data, 0, examples)
    batch = place(batches, 0, sharding(mesh, "microbatches"), accumulation=1)
    there = {name: (array.shape, array.dtype) for name, array in batch.items()}
    supposed = abstract_batch(config, mesh)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in supposed.items()} == there


def test_state_is_divided_and_weights_are_gathered_for_every_layer():
    whole, divided = (
        compiled_costs(tiny({**KEYS, "mesh.data": 1, "mesh.fsdp": fsdp}), jax.devices()[:fsdp])
        for fsdp in (1, 8)
    )
    one, eighth = (costs["bytes_per_device"] for costs in (whole, divided))
    assert (
        one["total"]
        == one["arguments"] + one["outputs"] - one["alias"] + one["temporaries"] + one["code"]
    )
    assert one["arguments"] / 8 < eighth["arguments"] < one["arguments"] / 4  # norms are whole
    assert not whole["collectives"]
    gathers = divided["collectives"]["all-gather"]["executions"]
    assert gathers >= 2 * 6 * LAYERS  # 4 matrices of attention and 2 others, forward and back
    assert divided["num_devices"] == 8 and divided["fits"] is None


def test_offloading_and_dividing_moments_leave_less_on_a_device():
    def arguments(**keys):
        keys = {f"optim.{key}": value for key, value in keys.items()}
        compiled = compile_step(tiny({**KEYS, "mesh.data": 8, **keys}), jax.devices()[:8])
        return bytes_per_device(compiled)["arguments"]

    moments = arguments() * 2 / 3  # of parameters and two moments
    assert arguments(shard_moments=True) < arguments() - 0.7 * moments


@pytest.mark.parametrize(
    ("said", "needs"),
    [
        ("Ran out of HLO temporaries (31.32G) exceeds available HBM (15.75G).", "31.32G of 15.75G"),
        ("Used 17.25G of 15.75G hbm.\nProgram hbm: ...", "17.25G of 15.75G"),
    ],
)
def test_what_is_largest_is_said(said, needs):
    """16 sequences over 4 devices, of 64 positions; a vocabulary of 4096, float32."""
    keys = {"data.sequence_length": 64, "data.batch_size": 16, "model.vocab_size": 4096}
    line = _exhausted(said, tiny({**KEYS, **keys}), {"data": 4, "fsdp": 1, "tensor": 1})
    assert f"needs {needs} of a device's memory; the largest are activations logits" in line
    assert f"logits {4 * 64 * 4096 * 4 / 2**30:.3g} GiB, moments " in line
    assert "model.remat=full" in line and "\n" not in line


@pytest.mark.parity
@pytest.mark.parametrize(("columns", "layout"), [(64, "{0,1"), (256, "{1,0")])
def test_on_tpus_less_than_a_tile_is_never_the_last(columns, layout):
    mesh = make_mesh(data=1, fsdp=4, devices=topology_devices("v5e:2x2"))
    place = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    w = jax.ShapeDtypeStruct((128, 4 * columns), "float32", sharding=place)
    with use_mesh(mesh):
        text = jax.jit(lambda w: laid_out(w + 1).sum()).lower(w).compile().as_text()
    assert f"f32[128,{columns}]{layout}" in text
    other = "{1,0" if layout == "{0,1" else "{0,1"
    assert f"f32[128,{columns}]{other}" not in text


@pytest.mark.parity
def test_what_does_not_fit_is_one_line():
    keys = {"data.sequence_length": 16384, "data.batch_size": 64, "mesh.data": 4}
    with pytest.raises(RunError, match=r"needs [\d.]+G of 15.75G") as caught:
        compile_step(tiny({**KEYS, **keys}), topology_devices("v5e:2x2"))
    assert "the largest are activations logits" in str(caught.value)
    assert "model.remat=full" in str(caught.value) and "\n" not in str(caught.value)


WIDE = {"model.d_model": 2048, "model.d_ff": 4096, "model.head_width": 128}


@pytest.mark.parity
def test_on_tpus_gathered_weights_are_not_kept_for_the_backward_pass():
    devices = topology_devices("v6e:4x4")
    keys = {**KEYS, **WIDE, "mesh.data": 1, "mesh.fsdp": 16, "data.batch_size": 16}
    config = tiny({**keys, "model.remat": "none", "model.compute_dtype": "bfloat16"})
    temporaries = bytes_per_device(compile_step(config, devices))["temporaries"]
    # Of one layer; kept, they would be those of three.
    assert temporaries < 2 * 2048 * (4 * config.model.num_heads * 128 + 2 * 4096)


@pytest.mark.parity
@pytest.mark.parametrize("topology", ["v5p:2x2x4", "v6e:8x8"])
def test_on_tpus_weights_are_gathered_and_their_gradients_scattered(topology):
    """Of a whole slice, where XLA by itself has all-reduces."""
    devices = topology_devices(topology)
    config = tiny(
        {**KEYS, "mesh.data": 1, "mesh.fsdp": -1, "model.compute_dtype": "bfloat16"}
        | {**WIDE, "data.batch_size": len(devices), "objective.logits_chunk": 32}
    )
    moved = compiled_costs(config, devices)["collectives"]
    matrices = 2 * 2048 * (4 * config.model.num_heads * 128 + 2 * 4096)
    assert 2 * LAYERS * matrices < moved["all-gather"]["bytes"]
    assert LAYERS * matrices < moved["reduce-scatter"]["bytes"] < 1.5 * LAYERS * matrices
    assert moved["all-reduce"]["bytes"] < 0.4 * matrices  # of three layers, embedding and head


@pytest.mark.parity
@pytest.mark.parametrize(
    ("topology", "kind"), [("v5e:2x2", "all-gather"), ("h100:1x4", "reduce-scatter")]
)
def test_a_step_is_compiled_for_hardware_that_is_not_there(topology, kind):
    devices = topology_devices(topology)
    config = tiny(
        {**KEYS, "mesh.data": 1, "mesh.fsdp": 4, "model.compute_dtype": "bfloat16"}
        | {"model.d_model": 512, "model.d_ff": 1024, "model.head_width": 128}
    )
    costs = compiled_costs(config, devices)
    parameters = costs["bytes_per_device"]["arguments"] / 12
    weights = 3 * 512 * (4 * 4 * 128 + 2 * 1024)
    assert math.isclose(parameters, weights / 4, rel_tol=0.2)
    assert costs["fits"] and costs["collectives"][kind]["executions"] >= LAYERS
    sizes, peak = costs["bytes_per_device"], costs["peak_bytes_per_device"]
    assert sizes["arguments"] < peak < sizes["total"] + 2**27  # with a TPU's vector memory
