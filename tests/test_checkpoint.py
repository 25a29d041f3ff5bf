import json
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm import checkpoint
from lm.checkpoint import Checkpoints
from lm.config import CheckpointConfig
from lm.errors import RunError, UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent


def config(keep_last=100, keep_best=0, keep_every_steps=0):
    return CheckpointConfig(1, keep_last, keep_best, keep_every_steps, 0.0)


def mesh_of(shape, kind=AxisType.Explicit):
    devices = jax.devices()[: np.prod(shape)]
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), (kind,) * 3, devices=devices)


def some_state(mesh, seed=0):
    """Every kind of leaf that a training state may hold, on a mesh."""
    numbers = np.random.default_rng(seed)
    specs = {
        "step": P(),
        "params": {"table_VD": P("tensor", "fsdp"), "scale_D": P("fsdp")},
        "opt_state": (P(), {"mu": P(("data", "fsdp"), None)}, {}),
        "flags": P(),
        "raw_key": P(),
    }
    values = {
        "step": np.int32(seed),
        "params": {
            "table_VD": numbers.normal(size=(16, 8)).astype(np.float32),
            "scale_D": numbers.normal(size=8).astype(jnp.bfloat16),
        },
        "opt_state": (np.uint32(7), {"mu": numbers.normal(size=(8, 6)).astype(np.float32)}, {}),
        "flags": numbers.random(5) < 0.5,
        "raw_key": np.asarray(jax.random.key_data(jax.random.key(seed))),
    }
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), values, specs)


def template_of(state):
    def described(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(described, state)


def as_bytes(leaf):
    return np.asarray(leaf).tobytes()


def assert_equal(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for leaf, same in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        assert (leaf.shape, leaf.dtype) == (same.shape, same.dtype)
        assert as_bytes(leaf) == as_bytes(same)


def small(value):
    return {"params": {"w": jnp.full((64,), value, jnp.float32)}, "step": jnp.int32(value)}


def saved(folder, *steps, keep=None):
    with Checkpoints(folder, keep or config()) as checkpoints:
        for step in steps:
            checkpoints.save(step, small(step))
    return folder


def value_of(found):
    step, state = found
    assert_equal(state, small(step))
    return step


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# Where a state goes


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_a_state_is_bit_equal_on_another_mesh_and_on_one_device(tmp_path, kind, capfd):
    state = some_state(mesh_of((8, 1, 1), kind), seed=3)
    with Checkpoints(tmp_path / "new" / "folder", config()) as checkpoints:
        checkpoints.save(3, state)
        for shape in ((2, 2, 2), (1, 1, 1)):
            other = some_state(mesh_of(shape, kind), seed=3)
            step, restored = checkpoints.restore(template_of(other))
            assert step == 3
            assert_equal(restored, state)
            placed = jax.tree.map(lambda x, y: x.sharding == y.sharding, restored, other)
            assert jax.tree.all(placed)
    assert capfd.readouterr() == ("", "")


def test_templates_of_eval_shape_and_without_sharding(tmp_path):
    mesh = mesh_of((2, 2, 2))
    state = some_state(mesh)
    with Checkpoints(tmp_path, config()) as checkpoints:
        checkpoints.save(1, state)
        with jax.set_mesh(mesh):
            template = jax.eval_shape(lambda: jax.tree.map(lambda x: x, state))
            _, restored = checkpoints.restore(template)
        assert_equal(restored, state)
        assert restored["params"]["table_VD"].sharding == state["params"]["table_VD"].sharding
        plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        _, restored = checkpoints.restore(plain)
        assert_equal(restored, state)
        assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(restored))
        params = {"params": template_of(state)["params"]}
        _, restored = checkpoints.restore(params, partial=True)
        assert_equal(restored, {"params": state["params"]})


def test_one_device_reads_what_eight_have_saved(tmp_path):
    state = some_state(mesh_of((2, 2, 2)))
    with Checkpoints(tmp_path, config()) as checkpoints:
        checkpoints.save(5, state, metrics={"eval/loss": jnp.float32(1.5)})
    script = f"""
import jax, numpy, sys
from lm.checkpoint import Checkpoints
from lm.config import CheckpointConfig
Checkpoints("nowhere", CheckpointConfig(1, 1, 1, 1, 0.0))
assert "orbax" not in sys.modules
assert len(jax.devices()) == 1
shapes = {{"table_VD": ((16, 8), "float32"), "scale_D": ((8,), "bfloat16")}}
template = {{"params": {{name: jax.ShapeDtypeStruct(*x) for name, x in shapes.items()}}}}
step, arrays = Checkpoints({str(tmp_path)!r}).restore(template, partial=True)
params = arrays["params"]
print(step, *arrays, *(numpy.asarray(params[name]).tobytes().hex() for name in sorted(params)))
"""
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=tmp_path, text=True, capture_output=True
    )
    assert run.stderr == ""
    params = state["params"]
    arrays = [as_bytes(params[name]).hex() for name in sorted(params)]
    assert run.stdout.split() == ["5", "params", *arrays]


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1), (2, 2, 2)])
def test_the_next_step_may_reuse_the_memory_of_what_is_being_saved(tmp_path, shape):
    mesh = mesh_of(shape)
    values = np.random.default_rng(0).normal(size=(1024, 512)).astype(np.float32)
    sharding = NamedSharding(mesh, P("fsdp", "tensor"))
    step = jax.jit(lambda state: {"w": -state["w"] + 1}, donate_argnums=0)
    with Checkpoints(tmp_path, config()) as checkpoints:
        for number in range(3):
            state = {"w": jax.device_put(values + number, sharding)}
            checkpoints.save(number, state)
            for _ in range(5):
                state = step(state)
            jax.block_until_ready(state)
        for number in range(3):
            _, restored = checkpoints.restore(state, step=number)
            np.testing.assert_array_equal(restored["w"], values + number)


def test_the_first_save_makes_nothing_compile_again(tmp_path):
    script = """
import sys
import jax, jax.numpy as jnp
from lm.checkpoint import Checkpoints
from lm.config import CheckpointConfig
traced = []
@jax.jit
def step(x):
    traced.append(x)
    return x + 1
x = step(jnp.zeros(3))
with Checkpoints("run", CheckpointConfig(1, 1, 1, 1, 0.0)) as checkpoints:
    assert "orbax" not in sys.modules
    checkpoints.save(1, {"x": x})
    step(x)
    assert "orbax" in sys.modules
assert len(traced) == 1
"""
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path, check=True)


# Checksums


def reference_checksum(array):
    """In Python's integers, from the bytes."""
    width, mask = min(array.itemsize, 4), 2**32 - 1
    data, total = array.tobytes(), 0
    for index in range(len(data) // width):
        word = int.from_bytes(data[index * width : (index + 1) * width], sys.byteorder)
        word = (word + index * 0x9E3779B9) & mask
        word = ((word ^ (word >> 16)) * 0x85EBCA6B) & mask
        word = ((word ^ (word >> 13)) * 0xC2B2AE35) & mask
        total += word ^ (word >> 16)
    return total & mask


DTYPES = ("float32", "bfloat16", "float16", "float64", "int32", "uint32", "int64", "int8", "bool")


@pytest.mark.parametrize("dtype", [*DTYPES, "float8_e4m3fn"])
def test_checksums_follow_their_definition_on_any_mesh(dtype):
    numbers = np.random.default_rng(0).normal(size=(4, 8, 6)) * 9
    array = numbers > 0 if dtype == "bool" else numbers.astype(jnp.dtype(dtype))
    expected = reference_checksum(array)
    with jax.enable_x64(array.itemsize == 8):
        for shape in ((1, 1, 1), (8, 1, 1), (2, 2, 2)):
            sharding = NamedSharding(mesh_of(shape), P("tensor", ("data", "fsdp")))
            assert int(checkpoint.checksum(jax.device_put(array, sharding))) == expected
        part = array[0, 0, 0]
        assert int(checkpoint.checksum(jnp.asarray(part))) == reference_checksum(part)
        changed = array.copy()
        changed.view(np.uint8)[3, 7, -1] ^= 1
        assert int(checkpoint.checksum(jnp.asarray(changed))) != expected
        assert int(checkpoint.checksum(jnp.asarray(array[:, ::-1]))) != expected


def test_a_float64_state(tmp_path):
    values = np.arange(12.0) / 7
    with jax.enable_x64(True), Checkpoints(tmp_path, config()) as checkpoints:
        state = {"params": jnp.asarray(values), "count": jnp.int64(2**40)}
        checkpoints.save(1, state)
        _, restored = checkpoints.restore(state)
        assert_equal(restored, state)
    assert restored["params"].tobytes() == values.tobytes()


# Damage


def flip(path, generator):
    data = bytearray(path.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    path.write_bytes(data)


def truncate(path, generator):
    path.write_bytes(path.read_bytes()[: generator.randrange(path.stat().st_size)])


def delete(path, generator):
    path.unlink()


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_damage_to_any_file_is_reported_and_the_one_before_is_used(tmp_path, damage, capfd):
    generator = random.Random(damage.__name__)
    saved(tmp_path, 1, 2)
    paths = files_of(tmp_path / "2")
    assert len(paths) > 5
    for path in paths:
        content = path.read_bytes()
        damage(path, generator)
        checkpoints = Checkpoints(tmp_path)
        assert value_of(checkpoints.restore(small(0))) == 1
        assert value_of(checkpoints.restore(small(0))) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith(f"Checkpoint {tmp_path / '2'} is damaged and not used: ")
        assert path.name in err
        assert err.count("\n") == 1
        path.write_bytes(content)
        capfd.readouterr()
    assert value_of(Checkpoints(tmp_path).restore(small(0))) == 2


def test_arrays_that_are_not_those_saved_are_found_when_every_file_is_whole(tmp_path, capfd):
    saved(tmp_path, 1, 2)
    path = tmp_path / "2" / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())["manifest"]
    manifest["arrays"]["params/w"]["checksum"] ^= 1
    content = {"manifest": manifest, "crc32": checkpoint._crc32_of_json(manifest)}
    path.write_text(json.dumps(content))
    assert value_of(Checkpoints(tmp_path).restore(small(0))) == 1
    assert "the checksum of params/w is" in capfd.readouterr().err


def test_no_good_checkpoint_and_none_at_all(tmp_path):
    folder = saved(tmp_path / "a", 1, 2)
    for step in (1, 2):
        (folder / str(step) / checkpoint.MANIFEST).unlink()
    with pytest.raises(RunError, match=f"No good checkpoint in {folder}.* move the folder away"):
        Checkpoints(folder).restore(small(0))
    assert Checkpoints(tmp_path / "b").restore(small(0)) is None
    with pytest.raises(UserError, match=r"a has no checkpoint 3; it has: 1, 2\."):
        Checkpoints(folder).restore(small(0), step=3)
    assert not (tmp_path / "b").exists()


def test_a_template_of_another_model_is_a_mistake_and_no_damage(tmp_path, capfd):
    saved(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path)
    for other, message in (
        ({"w": jnp.zeros(65)}, r"params/w is float32\[64\] there and float32\[65\] here\."),
        ({"w": jnp.zeros(64, jnp.bfloat16)}, r"float32\[64\] there and bfloat16\[64\] here"),
        ({"v": jnp.zeros(64)}, r"params/v is missing there and .*params/w is .* and missing here"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoints.restore({"params": other, "step": jnp.int32(0)})
    with pytest.raises(UserError, match="step is int32"):
        checkpoints.restore({"params": small(0)["params"]})
    assert value_of(checkpoints.restore(small(0))) == 2
    assert capfd.readouterr().err == ""


# What is kept


def test_the_last_the_best_and_every_nth_are_kept(tmp_path):
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: float("nan"), 5: 2.0, 6: None, 7: 3.0, 8: 9.0, 9: 9.5}
    with Checkpoints(tmp_path, config(2, keep_best=2, keep_every_steps=3)) as checkpoints:
        for step, loss in losses.items():
            metrics = None if loss is None else {"eval/loss": loss}
            checkpoints.save(step, small(step), metrics)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3, 5, 6, 8, 9]
        assert [path.name for path in tmp_path.iterdir() if not path.name.isdecimal()] == []
        for step in checkpoints.steps():
            assert value_of(checkpoints.restore(small(0), step=step)) == step
    saved(tmp_path, 10, keep=config(1))
    assert Checkpoints(tmp_path).steps() == [10]


def test_a_damaged_one_does_not_count_as_kept_and_is_saved_anew(tmp_path, capfd):
    saved(tmp_path, 1, 2, 3)
    for step in (2, 3):
        delete(files_of(tmp_path / str(step))[-1], None)
    with Checkpoints(tmp_path, config(keep_last=2)) as checkpoints:
        assert value_of(checkpoints.restore(small(0))) == 1
        checkpoints.save(2, small(2), wait=True)
        assert checkpoints.steps() == [1, 2]
        assert value_of(checkpoints.restore(small(0))) == 2


def test_a_step_is_saved_once(tmp_path, capfd):
    saved(tmp_path, 1)
    before = {path: path.stat().st_mtime_ns for path in files_of(tmp_path)}
    saved(tmp_path, 1)
    assert {path: path.stat().st_mtime_ns for path in files_of(tmp_path)} == before
    assert capfd.readouterr() == ("", "")


def test_leftovers_are_never_chosen_and_only_a_writer_removes_them(tmp_path):
    saved(tmp_path, 1)
    shutil.copytree(tmp_path / "1", tmp_path / "2.partial")
    shutil.copytree(tmp_path / "1", tmp_path / "0.deleted")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with Checkpoints(tmp_path) as reader:
        assert reader.steps() == [1]
        assert value_of(reader.restore(small(0))) == 1
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    Checkpoints(tmp_path, config())
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_full_disk_is_one_clear_error_and_costs_nothing_saved_before(tmp_path, capfd):
    saved(tmp_path, 1)
    large = {"w": jnp.arange(2**20, dtype=jnp.float32)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, config(keep_last=1)) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
        try:
            checkpoints.save(2, large)
            message = rf"{tmp_path / '2'} could not be written: File too large.* from step 1\."
            with pytest.raises(RunError, match=message) as raised:
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(raised.value)
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        assert value_of(checkpoints.restore(small(0))) == 1
        checkpoints.save(2, large, wait=True)
        assert checkpoints.steps() == [2]
    assert capfd.readouterr() == ("", "")


# Whole processes

KILLED = """
import sys
import jax.numpy as jnp
from lm.checkpoint import Checkpoints
from lm.config import CheckpointConfig
checkpoints = Checkpoints(sys.argv[1], CheckpointConfig(1, 2, 0, 0, 0.0))
step = max(checkpoints.steps(), default=0)
while True:
    step += 1
    checkpoints.save(step, {"w": jnp.full((300_000,), step, jnp.float32)}, wait=True)
    print(step, flush=True)
"""


def test_a_run_killed_while_it_saves_leaves_the_newest_or_the_one_before(tmp_path, capfd):
    generator = random.Random(0)
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
        committed = int(child.stdout.readline())
        try:
            child.wait(timeout=generator.uniform(0, 0.4))
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
        committed = [committed, *map(int, child.communicate()[0].split())][-1]
        assert child.returncode == -signal.SIGKILL
        template = {"w": jax.ShapeDtypeStruct((300_000,), jnp.float32)}
        step, arrays = Checkpoints(tmp_path).restore(template)
        assert step in (committed, committed + 1)
        np.testing.assert_array_equal(arrays["w"], np.full(300_000, step, np.float32))
    assert capfd.readouterr().err == ""


TOGETHER = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from lm.checkpoint import Checkpoints
from lm.config import CheckpointConfig
address, index, folder, damaged = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(index))
mesh = jax.make_mesh((2, 2), ("data", "fsdp"))
values = np.arange(2**15, dtype=np.float32).reshape(8, -1)  # not held by a manifest itself
def on_mesh(add, spec):
    sharding = NamedSharding(mesh, spec)
    added = values + np.float32(add)
    return {"w": jax.make_array_from_callback(added.shape, sharding, lambda index: added[index])}
with Checkpoints(folder, CheckpointConfig(1, 3, 0, 0, 0.0)) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, on_mesh(step, P(("data", "fsdp"))))
    checkpoints.wait()
    step, state = checkpoints.restore(on_mesh(0, P("fsdp")))
    print("restored", step)
    if index == "0":
        with open(damaged, "r+b") as file:
            file.truncate(3)
    step, state = checkpoints.restore(on_mesh(0, P("fsdp", "data")))
    for shard in state["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, values[shard.index] + step)
    print("restored", step, checkpoints.steps())
"""


def test_two_processes_agree_even_when_only_one_sees_the_damage(tmp_path, capfd):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    path = tmp_path / "3" / "state" / "_METADATA"
    env = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, address, str(index), str(tmp_path), str(path)],
            env=os.environ | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [child.communicate(timeout=120) for child in children]
    for out, _ in outputs:
        assert out.endswith("restored 2 [1, 2, 3]\n"), outputs
        assert out.count("restored 3\n") == 1
    reports = [err.count(f"{path.name} has 3 bytes") for _, err in outputs]
    assert sum(reports) == 1, outputs
    assert [err.count("another process cannot read it") for _, err in outputs] == reports[::-1]
    lacking_the_parts_of_one_process(tmp_path, capfd)


def lacking_the_parts_of_one_process(folder, capfd):
    """Of the checkpoints 1 to 3 of two processes, 2 loses what process 1 wrote; 1 is read."""
    shutil.rmtree(folder / "3")
    parts = folder / "2" / "state" / "ocdbt.process_1"
    assert len(files_of(parts)) > 1
    shutil.rmtree(parts)
    values = np.arange(2**15, dtype=np.float32).reshape(8, -1)
    template = {"w": jax.ShapeDtypeStruct(values.shape, jnp.float32)}
    manifest = folder / "2" / checkpoint.MANIFEST
    for known in (True, False):  # to the manifest; else Orbax finds out
        if not known:
            content = json.loads(manifest.read_text())["manifest"]
            files = content["files"]
            content["files"] = {name: files[name] for name in files if parts.name not in name}
            crc32 = checkpoint._crc32_of_json(content)
            manifest.write_text(json.dumps({"manifest": content, "crc32": crc32}))
        capfd.readouterr()
        step, state = Checkpoints(folder).restore(template)
        np.testing.assert_array_equal(state["w"], values + step)
        err = capfd.readouterr().err
        assert (step, err.count("\n")) == (1, 1), err
        assert err.startswith(f"Checkpoint {folder / '2'} is damaged and not used: ")
