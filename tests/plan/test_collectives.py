"""Programs whose traffic is known by hand, compiled for eight devices."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.mesh import make_mesh
from lm.plan.collectives import collectives

N = 8
MESH = make_mesh(data=N, devices=jax.devices()[:N])


def found(function, *shapes):
    """Of a function of every device's part of arrays that are divided along their first dim."""
    run = jax.shard_map(function, mesh=MESH, in_specs=P("data"), out_specs=P("data"))
    place = NamedSharding(MESH, P("data"))
    args = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place) for shape in shapes]
    return collectives(jax.jit(run).lower(*args).compile().as_text())


def test_a_gather_is_as_large_as_the_whole():
    def gather(x):
        return jax.lax.all_gather(x, "data", tiled=True).sum(0, keepdims=True) * x

    assert found(gather, (N, 100)) == {"all-gather": {"executions": 1, "bytes": N * 100 * 4}}


def test_a_loop_counts_as_often_as_it_runs_and_a_loop_within_it_too():
    def inner(x, _):
        return jnp.sin(jax.lax.ppermute(x, "data", [(i, (i + 1) % N) for i in range(N)])), None

    def outer(x, _):
        x, _ = jax.lax.scan(inner, x, length=3)
        return x * jax.lax.psum(x, "data"), None

    counts = found(lambda x: jax.lax.scan(outer, x, length=5)[0], (N, 50))
    assert counts == {
        "all-reduce": {"executions": 5, "bytes": 5 * 50 * 4},
        "collective-permute": {"executions": 15, "bytes": 15 * 50 * 4},
    }


def test_an_exchange_is_as_large_as_what_a_device_gives():
    def exchange(x):
        return jax.lax.all_to_all(x, "data", 1, 1, tiled=True)

    assert found(exchange, (N, N * 6)) == {"all-to-all": {"executions": 1, "bytes": N * 6 * 4}}


def test_alone_nothing_is_moved():
    text = jax.jit(lambda x: jnp.cumsum(x * 2)).lower(jnp.ones(5)).compile().as_text()
    assert collectives(text) == {}


# What other compilers write: operations that start and end, fusions that scatter a sum, and loops
# whose number of rounds only their condition tells.
TPU = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%all-reduce-scatter.3 (p: bf16[64,16]) -> bf16[8,16] {
  %p = bf16[64,16]{1,0} parameter(0)
  %all-reduce.7 = bf16[64,16]{1,0} all-reduce(%p), replica_groups={}, to_apply=%add
  ROOT %slice.1 = bf16[8,16]{1,0} slice(%all-reduce.7), slice={[0:8], [0:16]}
}

%condition (c: (s32[], bf16[64,16])) -> pred[] {
  %c = (s32[]{:T(128)}, bf16[64,16]{1,0}) parameter(0)
  %limit = s32[]{:T(128)} constant(32)
  %round = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[] compare(%round, %limit), direction=LT
}

%body (c: (s32[], bf16[64,16])) -> (s32[], bf16[64,16]) {
  %c.1 = (s32[]{:T(128)}, bf16[64,16]{1,0}) parameter(0)
  %x = bf16[64,16]{1,0} get-tuple-element(%c.1), index=1
  %fusion.1 = bf16[8,16]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
  %start = ((bf16[8,16]{1,0}), bf16[64,16]{1,0}) all-gather-start(%fusion.1), dimensions={0}
  %done = bf16[64,16]{1,0} all-gather-done(%start)
  %go = (bf16[64,16]{1,0}, bf16[64,16]{1,0}, u32[]) collective-permute-start(%done), channel_id=1
  %gone = bf16[64,16]{1,0} collective-permute-done(%go)
  %n = s32[]{:T(128)} get-tuple-element(%c.1), index=0
  ROOT %out = (s32[]{:T(128)}, bf16[64,16]{1,0}) tuple(%n, %gone)
}

ENTRY %main (c: (s32[], bf16[64,16])) -> (s32[], bf16[64,16]) {
  %c.2 = (s32[]{:T(128)}, bf16[64,16]{1,0}) parameter(0)
  ROOT %while.1 = (s32[]{:T(128)}, bf16[64,16]{1,0}) while(%c.2), condition=%condition, body=%body
}
"""


def test_what_tpus_and_gpus_write():
    whole = {"executions": 32, "bytes": 32 * 64 * 16 * 2}
    kinds = "all-gather", "reduce-scatter", "collective-permute"
    assert collectives(TPU) == dict.fromkeys(kinds, whole)
