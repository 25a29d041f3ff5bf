"""What names hardware, and what does not: one line."""

import pytest

from experiments.plan import plan
from lm.errors import UserError
from lm.plan import topology
from lm.plan.topology import GPUS, TPUS, topology_devices


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5q:2x2x4", "no chip 'v5q' is known. Did you mean 'v5"),
        ("v5p", "v5p takes 3 sizes, as in v5p:2x2x4"),
        ("v5p:4x4", "v5p takes 3 sizes"),
        ("v5e:2x2x4", "v5e takes 2 sizes"),
        ("h100:8", "h100 takes 2 sizes"),
        ("v6e:0x8", "v6e takes 2 sizes"),
    ],
)
def test_what_is_no_topology_is_refused(name, says):
    with pytest.raises(UserError, match="--topology=") as caught:
        topology_devices(name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["v5p:2x2x4", "h100:1x8"])
def test_without_the_compiler_the_extra_is_named(name, monkeypatch):
    monkeypatch.setattr(topology.importlib.metadata, "distributions", lambda **_: [])
    with pytest.raises(UserError, match=r"pip install -e '\.\[aot\]'"):
        topology_devices(name)


def test_a_plan_says_what_it_needs():
    with pytest.raises(UserError, match="--compile"):
        plan(["--config=configs/gpt2.py:small", "--topology=v5p:2x2x4"])


@pytest.mark.parity
@pytest.mark.parametrize(
    "name", [f"{kind}:{'2x2x1' if dims == 3 else '2x2'}" for kind, dims in TPUS.items()]
)
def test_slices_of_tpus(name):
    assert len(topology_devices(name)) in (4, 8)


@pytest.mark.parity
@pytest.mark.parametrize("kind", GPUS)
def test_nodes_of_gpus(kind):
    devices = topology_devices(f"{kind}:2x4")
    assert len(devices) == 8 and devices[0].device_kind == GPUS[kind].kind
    assert topology.memory_of(devices[0]) > 70e9


@pytest.mark.parity
def test_a_slice_that_is_not_made_is_refused():
    with pytest.raises(UserError, match="knows no such slice"):
        topology_devices("v5e:17x3")
