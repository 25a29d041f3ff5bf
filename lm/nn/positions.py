"""Where a token stands: a table, sinusoids, rotated queries and keys, or what scores get added."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm.mesh import ACTIVATIONS, current_mesh, laid_out, local, put
from lm.nn.params import matrix_init, param, weight


class Table(nnx.Module):
    """A table with a row for each position (GPT-1, BERT), the first after position_offset rows, or
    for each type of token (BERT's two sentences).

    letter: of the rows' dim, as in table_PD; dim: its key of mesh.PARAMETER_DIMS.
    """

    def __init__(self, config, letter, rows, dim, offset=0):
        self.name, self.offset, width = f"table_{letter}D", offset, config.d_model
        init = matrix_init(config, width, rows)
        setattr(self, self.name, param((rows, width), (dim, "model"), init, config.param_dtype))

    def __call__(self, index_BT):
        """(B or 1, T, D) in the parameters' precision."""
        index_BT, shared = index_BT + self.offset, index_BT.shape[0] == 1
        return looked_up(getattr(self, self.name), index_BT, shared=shared)


def looked_up(table, index_BT, dtype=None, shared=False):
    """The rows (B or 1, T, D) of a parameter, in `dtype`, or else in its precision, in which
    gradients are summed: that of a frequent row as precisely as the table is kept.

    Over fsdp the table stays divided: each device looks its columns up for the tokens of all, and
    they change places. That moves as much as the result has, and no table. shared: one row of
    indices serves the whole batch, and what it gives is whole on every device.
    """
    table_VD, dtype = table[...], dtype or table[...].dtype
    if current_mesh() is None or shared:
        return weight(table, table_VD.dtype)[index_BT].astype(dtype)
    index_BT = put(index_BT, "fsdp_tokens")
    columns_BTD = laid_out(table_VD).at[index_BT].get(out_sharding=ACTIVATIONS["columns"])
    return put(columns_BTD.astype(dtype), "residual")


class DistanceBuckets(nnx.Module):
    """What heads add to the scores of a bucket of distances (arXiv:1910.10683, section 2.1)."""

    def __init__(self, config):
        self.config = config
        R, N = config.position_buckets, config.num_heads
        init = matrix_init(config, config.d_model, R)
        self.table_RN = param((R, N), ("buckets", "heads"), init, config.param_dtype)

    def __call__(self, visible):
        """(B or 1, N, T, S)."""
        furthest = self.config.position_max_distance
        buckets = distance_buckets(self.config)

        def of(table_RN, visible):
            distance_BTS = visible.positions_BS[:, None, :] - visible.positions_BT[:, :, None]
            place_BTS = jnp.clip(distance_BTS, -furthest, furthest) + furthest
            return jnp.moveaxis(table_RN[buckets][place_BTS], -1, 1)

        one = visible.positions_BT.shape[0] == 1
        rows, place = (None, "row_scores") if one else ("tokens", "scores")
        positions = dataclasses.replace(
            visible, segments_BT=None, segments_BS=None, until_BT=None, global_BS=None
        )
        return local(of, ("bucket_heads", rows), place)(self.table_RN[...], positions)


def distance_buckets(config):
    """int (2 * furthest + 1,): the bucket of each distance, key less query, from -furthest on.

    Half of the buckets, or of each half where a query sees both sides, have one distance; the
    others grow by a factor up to position_max_distance. A little is added, as a logarithm may fall
    short of a bucket's first distance.
    """
    furthest = config.position_max_distance
    buckets = config.position_buckets if config.causal else config.position_buckets // 2
    exact = buckets // 2
    distance = np.arange(furthest + 1)
    grown = np.log(np.maximum(distance, 1) / exact) / np.log(furthest / exact) * (buckets - exact)
    larger = np.minimum(exact + np.floor(grown + 1e-9), buckets - 1)
    before = np.where(distance < exact, distance, larger).astype(int)
    after = 0 * before[1:] if config.causal else buckets + before[1:]
    return np.concatenate([before[::-1], after])


def sinusoid(positions_BT, d_model, halves=False):
    """(B, T, D): sine and cosine interleaved, wavelengths from 2 pi to 10000 * 2 pi; halves: first
    all sines.

    arXiv:1706.03762, section 3.5.
    """
    rate_I = 10_000.0 ** (-2 * jnp.arange(d_model // 2) / d_model)
    angle_BTI = positions_BT[..., None] * rate_I
    both = jnp.sin(angle_BTI), jnp.cos(angle_BTI)
    if halves:
        return jnp.concatenate(both, -1)
    return jnp.stack(both, -1).reshape(*positions_BT.shape, d_model)


def rotary_rates(config, local=False):
    """Radians by which each pair turns at a step: float64 (R/2,), R = config.rope_width.

    arXiv:2104.09864, section 3.4.2, slowed down by config.rope_scaling. local: of local layers,
    which with config.rope_theta_local are never slowed.
    """
    width = config.rope_width
    exponent_I = -2 * np.arange(width // 2) / width
    if local and config.rope_theta_local:
        return config.rope_theta_local**exponent_I
    rate_I = config.rope_theta**exponent_I
    kept_I = _kept_rates(config, rate_I)
    return rate_I * kept_I + rate_I / config.rope_factor * (1 - kept_I)


def _kept_rates(config, rate_I):
    """How much of each rate stays as it is, from 0 (divided by config.rope_factor) to 1."""
    if config.rope_scaling == "none":
        return np.ones_like(rate_I)
    if config.rope_scaling == "linear":
        return np.zeros_like(rate_I)
    turns_I = config.rope_original_positions * rate_I / (2 * math.pi)  # in the original length
    if config.rope_scaling == "llama3":
        low, high = config.rope_low_frequency, config.rope_high_frequency
        return np.clip((turns_I - low) / (high - low), 0, 1)
    return 1 - _yarn_ramp(config, rate_I)


def _yarn_ramp(config, rate_I):
    """From 0 at the pair that makes rope_beta_fast turns in the original length, and those before
    it, to 1 at that of rope_beta_slow turns (arXiv:2309.00071, section 3.2).
    """
    width = config.rope_width

    def pair(turns):
        length = config.rope_original_positions / (2 * math.pi * turns)
        return width * math.log(length) / (2 * math.log(config.rope_theta))

    first, last = pair(config.rope_beta_fast), pair(config.rope_beta_slow)
    if config.rope_truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    return np.clip((np.arange(len(rate_I)) - first) / max(last - first, 1e-3), 0, 1)


def rotation(positions_BT, config, dtype, local=False):
    """(cos, sin), each (B, T, 1, R/2), of the angles of rotary positions; float32 or wider.

    yarn multiplies both by config.rope_attention_factor.
    """
    dtype = jnp.promote_types(dtype, jnp.float32)
    rate_I = jnp.asarray(rotary_rates(config, local), dtype)
    angle_BTI = positions_BT[:, :, None, None].astype(dtype) * rate_I
    scaled = config.rope_scaling == "yarn" and not (local and config.rope_theta_local)
    factor = config.rope_attention_factor if scaled else 1.0
    return jnp.cos(angle_BTI) * factor, jnp.sin(angle_BTI) * factor


def rotate(x_BTNH, cos_sin):
    """Turn the pairs (i, i + H/2) of each head by the angle of its position.

    It is the half-split layout of Llama in Hugging Face's format.
    """
    cos, sin = cos_sin
    a, b = jnp.split(x_BTNH.astype(cos.dtype), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BTNH.dtype)


def alibi_slopes(num_heads):
    """float64 (N,): how much each head loses with each position of distance.

    2^(-8 n / N), n = 1 .. N; if N is no power of two, those of the power before it, and for the
    other heads every second one of the power after it (arXiv:2108.12409, footnote 5 and code).
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-8 * np.arange(1, 2 * power + 1, 2) / (2 * power))
    return np.concatenate([slopes, between])[:num_heads]


def alibi_bias(slopes_N, visible):
    """(B or 1, N, T, S), which is added to scores. arXiv:2108.12409, section 3."""
    distance_BTS = visible.positions_BT[:, :, None] - visible.positions_BS[:, None, :]
    return -slopes_N[:, None, None] * distance_BTS[:, None]


def relative_bias(q_BTNH, position_DNH, visible):
    """(B, N, T, S): q_i (W_R R_{i-j}), which is added to scores before they are scaled.

    arXiv:1901.02860, section 3.3, terms (b) and (d), with q + v as q. Of R only the distances less
    than the number of keys are made: positions of one segment must rise by one.
    """
    D, S = position_DNH.shape[0], visible.positions_BS.shape[1]
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    rate_I = 10_000.0 ** (-2 * jnp.arange(D // 2, dtype=wide) / D)
    angle_SI = jnp.arange(S, dtype=wide)[:, None] * rate_I
    table_SD = jnp.concatenate([jnp.sin(angle_SI), jnp.cos(angle_SI)], -1).astype(q_BTNH.dtype)
    k_SNH = jnp.einsum("SD,DNH->SNH", table_SD, position_DNH)
    scores_BNTS = jnp.einsum("BTNH,SNH->BNTS", q_BTNH, k_SNH, preferred_element_type=wide)
    distance_BTS = visible.positions_BT[:, :, None] - visible.positions_BS[:, None, :]
    place_BNTS = jnp.clip(distance_BTS, 0, S - 1)[:, None]
    return jnp.take_along_axis(scores_BNTS, place_BNTS, -1)
