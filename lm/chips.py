"""Peak FLOP/s, memory and bandwidth of one JAX device, by its `device_kind`.

Figures are the vendors' data sheets', without sparsity, in decimal units. Names are matched whole:
a part of a card ("NVIDIA H100 80GB HBM3 MIG 1g.10gb") has another peak. What is not here is None,
never a guess. Nor is float32: JAX computes its products in bfloat16 or TF32 passes, depending on
jax_default_matmul_precision, so that no single peak would be right.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Device:
    """flops: FLOP/s by dtype; memory in bytes, and bandwidth in bytes/s; all of one JAX device."""

    chip: str
    devices_per_chip: int
    memory: float
    bandwidth: float
    flops: dict


def _device(chip, devices, gigabytes, gigabytes_per_second, **teraflops):
    memory, bandwidth = gigabytes * 1e9 / devices, gigabytes_per_second * 1e9 / devices
    flops = {dtype: peak * 1e12 / devices for dtype, peak in teraflops.items()}
    return Device(chip, devices, memory, bandwidth, flops)


def _gpu(chip, gigabytes, gigabytes_per_second, half, int8, float8):
    """half: teraflops of bfloat16 and of float16; float8 is None where the card has none."""
    more = {} if float8 is None else {"float8": float8}
    peaks = {"bfloat16": half, "float16": half, "int8": int8, **more}
    return _device(chip, 1, gigabytes, gigabytes_per_second, **peaks)


# A chip has two cores. JAX shows each as a device on v2, v3 and v7, and both as one on v4 and v5p
# ("megacore").
DEVICES = {
    "TPU v2": _device("TPU v2", 2, 16, 700, bfloat16=45),
    "TPU v3": _device("TPU v3", 2, 32, 900, bfloat16=123),
    "TPU v4": _device("TPU v4", 1, 32, 1200, bfloat16=275, int8=275),
    "TPU v5e": _device("TPU v5e", 1, 16, 819, bfloat16=197, int8=393),
    "TPU v5p": _device("TPU v5p", 1, 95, 2765, bfloat16=459, int8=918, float8=459),
    "TPU v6e": _device("TPU v6e", 1, 32, 1638, bfloat16=918, int8=1836, float8=918),
    "TPU7x": _device("TPU v7", 2, 192, 7380, bfloat16=2307, float8=4614),
    # No bfloat16 on Volta.
    "Tesla V100-SXM2-16GB": _device("V100 SXM2", 1, 16, 900, float16=125),
    "Tesla V100-SXM2-32GB": _device("V100 SXM2", 1, 32, 900, float16=125),
    "NVIDIA A100-SXM4-40GB": _gpu("A100 SXM4", 40, 1555, 312, 624, None),
    "NVIDIA A100-SXM4-80GB": _gpu("A100 SXM4", 80, 2039, 312, 624, None),
    "NVIDIA A100-PCIE-40GB": _gpu("A100 PCIe", 40, 1555, 312, 624, None),
    "NVIDIA A100 80GB PCIe": _gpu("A100 PCIe", 80, 1935, 312, 624, None),
    "NVIDIA H100 80GB HBM3": _gpu("H100 SXM", 80, 3350, 989, 1979, 1979),
    "NVIDIA H100 PCIe": _gpu("H100 PCIe", 80, 2000, 756, 1513, 1513),
    "NVIDIA H200": _gpu("H200", 141, 4800, 989, 1979, 1979),
    "NVIDIA B200": _gpu("B200", 180, 8000, 2250, 4500, 4500),
    "AMD Instinct MI300X": _gpu("MI300X", 192, 5300, 1307, 2615, 2615),
}
for other, name in (("v5 lite", "v5e"), ("v5", "v5p"), ("v6 lite", "v6e")):
    DEVICES[f"TPU {other}"] = DEVICES[f"TPU {name}"]


def peak_flops(kind, dtype):
    """Dense peak FLOP/s of one JAX device for a dtype, as "bfloat16"; None where it is unknown."""
    known = DEVICES.get(kind)
    dtype = "float8" if dtype.startswith("float8") else dtype
    return None if known is None else known.flops.get(dtype)
