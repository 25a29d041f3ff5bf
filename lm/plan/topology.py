"""Devices that are not there, for the compiler: slices of TPUs and nodes of GPUs.

TPUs need the package libtpu, GPUs jax-cuda13-plugin and jax-cuda13-pjrt (the extra `aot`); neither
needs a device, a driver or CUDA's libraries.
"""

import dataclasses
import importlib.metadata
import os
import re

from lm.chips import DEVICES
from lm.errors import UserError, did_you_mean, require

# How many sizes a slice has.
TPUS = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}
EXAMPLES = "v5p:2x2x4, v5e:4x4, v6e:8x8 (chips along each axis), h100:2x8 (nodes x GPUs of each)"


@dataclasses.dataclass(frozen=True)
class GPU:
    """What XLA's cost model and autotuner ask of a card. Kibibytes of a core, mebibytes of L2."""

    kind: str  # in lm.chips
    cores: int
    shared_kib: int
    cache_mib: int
    gigahertz: float
    capability: int

    def target(self):
        """XLA's GpuTargetConfigProto as text."""
        card = DEVICES[self.kind]
        return f"""
            platform_name: "CUDA" device_description_str: "{self.kind}"
            dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 8 }}
            gpu_device_info {{
              core_count: {self.cores} fpus_per_core: 128 clock_rate_ghz: {self.gigahertz}
              cuda_compute_capability {{ major: {self.capability} }}
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              shared_memory_per_block: 49152 shared_memory_per_core: {self.shared_kib << 10}
              shared_memory_per_block_optin: {(self.shared_kib - 1) << 10}
              l2_cache_size: {self.cache_mib << 20}
              memory_bandwidth: {card.bandwidth:.0f} device_memory_size: {card.memory:.0f}
            }}"""


# NVIDIA's architecture white papers; the clock is the boost clock.
GPUS = {
    "a100": GPU("NVIDIA A100-SXM4-80GB", 108, 164, 40, 1.41, 8),
    "h100": GPU("NVIDIA H100 80GB HBM3", 132, 228, 50, 1.98, 9),
    "h200": GPU("NVIDIA H200", 132, 228, 50, 1.98, 9),
    "b200": GPU("NVIDIA B200", 148, 228, 126, 1.965, 10),
}


def without_devices():
    """Have jax look for no device but the CPU; call before jax is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"


def chip(kind, given=None):
    """The lm.chips.Device of a kind in TPUS or GPUS. Raises UserError for another, and says what
    was given: --chip=kind, if nothing else is.
    """
    kinds, given = (*TPUS, *GPUS), given or f"--chip={kind}"
    require(kind in kinds, f"{given}: no chip {kind!r} is known.{did_you_mean(kind, kinds)}")
    return DEVICES[f"TPU {kind}" if kind in TPUS else GPUS[kind].kind]


def topology_devices(name):
    """The devices of "KIND:AxBxC", as jax gives those that are there.

    Raises UserError for what is no topology, or if the compiler for it is not installed.
    """
    kind, _, sizes = name.partition(":")
    chip(kind, f"--topology={name}")
    dims = TPUS.get(kind, 2)
    told = f"--topology={name}: {kind} takes {dims} sizes, as in {EXAMPLES}."
    require(re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{dims - 1}}}", sizes), told)
    package = "libtpu" if kind in TPUS else "jax-cuda13-plugin"
    told = f"--topology={name} needs the compiler in {package}: pip install -e '.[aot]'."
    require(any(importlib.metadata.distributions(name=package)), told)
    from jax.experimental.topologies import get_topology_desc

    # libtpu is to ask no network what machine this is, and nobody else whether it may.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-1"}
    try:
        if kind in TPUS:
            return get_topology_desc(platform="tpu", topology_name=name).devices
        of_gpus = {"target_config": GPUS[kind].target(), "topology": f"1x{sizes}"}
        return get_topology_desc(platform="cuda", topology_name=kind, **of_gpus).devices
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        told = f"--topology={name}: the compiler knows no such slice of {kind} ({text}); "
        raise UserError(f"{told}examples are {EXAMPLES}.") from error


def memory_of(device):
    """Bytes of memory of a device, of those that lm.chips knows; else None."""
    known = DEVICES.get(device.device_kind)
    return known and known.memory
