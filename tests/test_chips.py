"""Peaks of chips, beside jax's own table of TPUs and published utilisations."""

import pytest
from jax.experimental.pallas import tpu

from lm import chips

# device_kind, jax's name of the chip, cores of a jax device.
TPUS = (
    ("TPU v2", "TPU_V2", 1),
    ("TPU v3", "TPU_V3", 1),
    ("TPU v4", "TPU_V4", 2),
    ("TPU v5 lite", "TPU_V5E", 1),
    ("TPU v5", "TPU_V5P", 2),
    ("TPU v6 lite", "TPU_V6E", 1),
    ("TPU7x", "TPU_7X", 1),
)


@pytest.mark.parametrize(("kind", "name", "cores"), TPUS)
def test_a_tpu_is_as_jax_describes_it(kind, name, cores):
    """Within 15 %: jax gives v3 140 TFLOP/s and counts binary gigabytes, its data sheet 123."""
    known = chips.DEVICES[kind]
    info = tpu.get_tpu_info_for_chip(tpu.ChipVersion[name], cores)
    all_cores = info.chip_version.num_physical_tensor_cores_per_chip
    assert known.devices_per_chip == all_cores // cores
    ours = (known.flops["bfloat16"], known.memory, known.bandwidth)
    theirs = (info.bf16_ops_per_second, info.hbm_capacity_bytes, info.mem_bw_bytes_per_second)
    assert ours == pytest.approx([cores * value for value in theirs], rel=0.15)


@pytest.mark.parametrize(
    ("kind", "dtype", "teraflops"),
    [
        ("TPU v3", "bfloat16", 61.5),
        ("TPU v5 lite", "int8", 393),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA H100 80GB HBM3", "float16", 989),
        ("NVIDIA H100 80GB HBM3", "float8_e4m3fn", 1979),
        ("Tesla V100-SXM2-32GB", "float16", 125),
        ("AMD Instinct MI300X", "bfloat16", 1307),
    ],
)
def test_peaks_are_those_of_the_data_sheets(kind, dtype, teraflops):
    assert chips.peak_flops(kind, dtype) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("cpu", "float32"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16"),  # a part of a card
        ("NVIDIA GeForce RTX 4090", "bfloat16"),
        ("Tesla V100-SXM2-32GB", "bfloat16"),
        ("NVIDIA A100-SXM4-80GB", "float8_e5m2"),
        ("TPU v5p", "float32"),
    ],
)
def test_what_is_unknown_is_none(kind, dtype):
    assert chips.peak_flops(kind, dtype) is None


def test_no_chip_is_known_by_name_only():
    assert chips.peak_flops("TPU v99", "bfloat16") is None
    for kind, device in chips.DEVICES.items():
        assert device.flops and device.memory > 1e9 and device.bandwidth > 1e11, kind
