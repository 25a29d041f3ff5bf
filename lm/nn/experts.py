"""Experts: feed-forwards of which each token takes a few, chosen by a router (arXiv:1701.06538).

Beside the legend of `lm`: k the choices of a token, N the tokens and S the experts' rows of one
device.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from lm.mesh import current_mesh, local, placed
from lm.nn.feedforward import FeedForward, activate, branches
from lm.nn.grouped import grouped_matmul
from lm.nn.matmul import matmul
from lm.nn.params import matrix_init, param, zeros


class Experts(nnx.Module):
    """Router, experts and, if there is one, the expert that every token has besides."""

    def __init__(self, config):
        self.config = config
        D, E, F = config.d_model, config.num_experts, config.expert_d_ff
        dtype, names = config.param_dtype, branches(config)
        self.router_DE = param((D, E), ("model", "experts"), matrix_init(config, D, E), dtype)
        if config.router_bias:
            self.router_bias_E = param((E,), ("experts",), zeros, dtype)
        if config.router_selection_bias:
            self.selection_bias_E = param((E,), ("experts",), zeros, "float32", buffer=True)
        dims, init = ("experts", "model", "hidden"), matrix_init(config, D, F)
        for name in names:
            setattr(self, f"{name}_EDF", param((E, D, F), dims, init, dtype))
        dims, init = ("experts", "hidden", "model"), matrix_init(config, F, D, residual=True)
        self.down_EFD = param((E, F, D), dims, init, dtype)
        if config.feedforward_bias:
            for name in names:
                bias_EF = param((E, F), ("experts", "hidden"), zeros, dtype)
                setattr(self, f"{name}_bias_EF", bias_EF)
            self.down_bias_ED = param((E, D), ("experts", "norm"), zeros, dtype)
        if config.shared_expert_d_ff:
            self.shared = FeedForward(config, config.shared_expert_d_ff)
            if config.shared_expert_gate:
                self.shared_gate_D = param((D,), ("norm",), matrix_init(config, D, 1), dtype)

    def __call__(self, x_BTD, real_BT=None, key=None):
        """(B, T, D), and what the router did, as `routed` gives it.

        real_BT: bool, which tokens are not padding; None: all. key: for the router's jitter, in
        training; None: none. Of padding the output is finite and means nothing.
        """
        config = self.config
        logits_BTE = self._logits(x_BTD, key)
        scores_BTE = SCORES[config.router_score](logits_BTE)
        bias_E = self.selection_bias_E[...] if config.router_selection_bias else None
        chosen_BTk = choose(config, scores_BTE, bias_E)
        weights_BTk = chosen_weights(config, scores_BTE, chosen_BTk)
        y_BTD = self._outputs(x_BTD, chosen_BTk, weights_BTk, real_BT)
        if config.shared_expert_d_ff:
            y_BTD = y_BTD + self._shared(x_BTD)
        return y_BTD, routed(config, logits_BTE, scores_BTE, chosen_BTk, real_BT)

    def _logits(self, x_BTD, key):
        """(B, T, E), float32 or wider: a choice must not hang on a rounding."""
        x_BTD, config = _wide(x_BTD), self.config
        if key is not None and config.router_jitter:
            place = placed("whole", x_BTD.shape)
            low, high = 1 - config.router_jitter, 1 + config.router_jitter
            noise_BTD = jax.random.uniform(  # in float32, the same whatever is computed in
                key, x_BTD.shape, jnp.float32, low, high, out_sharding=place
            )
            x_BTD = x_BTD * noise_BTD
        logits_BTE = matmul(x_BTD, self.router_DE[...], "whole")
        return logits_BTE + self.router_bias_E[...] if config.router_bias else logits_BTE

    def _shared(self, x_BTD):
        y_BTD = self.shared(x_BTD)
        if not self.config.shared_expert_gate:
            return y_BTD
        gate_BT1 = matmul(_wide(x_BTD), self.shared_gate_D[...][:, None], "whole")
        return (y_BTD * jax.nn.sigmoid(gate_BT1)).astype(y_BTD.dtype)

    def _outputs(self, x_BTD, chosen_BTk, weights_BTk, real_BT):
        """(B, T, D): the sum of the chosen experts' outputs, each times its weight.

        Every device has its own tokens and a part of each expert's hidden units, and so computes a
        summand of the output.
        """
        config, weights = self.config, self._weights(x_BTD.dtype)
        names = {name: WEIGHTS[name] for name in weights}
        size = capacity(config, x_BTD.shape[1])

        def run(x_BTD, chosen_BTk, weights_BTk, real_BT, weights):
            if size:
                places = of_sequences(config, size, chosen_BTk, real_BT)
            else:
                places = of_all(config, chosen_BTk)
            return outputs(config, x_BTD, weights_BTk, weights, *places)[None]

        mask = None if real_BT is None else "tokens"
        ins = ("whole", "whole", "whole", mask, names)
        y_SBTD = local(run, ins, "summands")(x_BTD, chosen_BTk, weights_BTk, real_BT, weights)
        return y_SBTD.sum(0)

    def _weights(self, dtype):
        """{name: array} of the experts' parameters."""
        names = branches(self.config)
        arrays = {name: getattr(self, f"{name}_EDF")[...].astype(dtype) for name in names}
        arrays["down"] = self.down_EFD[...].astype(dtype)
        if self.config.feedforward_bias:
            arrays |= {f"{name}_bias": getattr(self, f"{name}_bias_EF")[...] for name in names}
            # The devices that share an expert's hidden units each add a part of its bias.
            mesh = current_mesh()
            arrays["down_bias"] = self.down_bias_ED[...] / (mesh.shape["tensor"] if mesh else 1)
        return arrays


# Where they lie: keys of mesh.ACTIVATIONS.
WEIGHTS: dict[str, str | None] = dict.fromkeys(("gate", "up"), "expert_inputs")
WEIGHTS |= {"down": "expert_outputs", "down_bias": None}
WEIGHTS |= dict.fromkeys(("gate_bias", "up_bias"), "expert_biases")

SCORES = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}


def choose(config, scores_BTE, bias_E=None):
    """int32 (B, T, k): the experts with the best scores, best first; of equal ones the first.

    bias_E takes part in the choice alone (arXiv:2408.15664). With groups, a token chooses within
    those with the best expert (arXiv:2405.04434, section 2.2.2) or the best two (arXiv:2412.19437,
    section 2.1.2).
    """
    if bias_E is not None:
        scores_BTE = scores_BTE + jax.lax.stop_gradient(bias_E)
    groups, kept = config.router_groups, config.router_groups_kept
    if kept < groups:
        size = config.num_experts // groups
        grouped_BTGE = scores_BTE.reshape(*scores_BTE.shape[:2], groups, size)
        best = 2 if config.router_group_score == "top2" else 1
        group_BTG = jax.lax.top_k(grouped_BTGE, best)[0].sum(-1)
        kept_BTG = one_hot(jax.lax.top_k(group_BTG, kept)[1], groups).any(-2)
        grouped_BTGE = jnp.where(kept_BTG[..., None], grouped_BTGE, -jnp.inf)
        scores_BTE = grouped_BTGE.reshape(scores_BTE.shape)
    return jax.lax.top_k(scores_BTE, config.experts_per_token)[1]


def one_hot(chosen_BTk, size):
    """bool (B, T, k, size)."""
    return chosen_BTk[..., None] == jnp.arange(size)


def chosen_weights(config, scores_BTE, chosen_BTk):
    """(B, T, k): what the outputs of the chosen experts are multiplied with."""
    picked = one_hot(chosen_BTk, config.num_experts)
    weights_BTk = jnp.where(picked, scores_BTE[:, :, None], 0).sum(-1)
    if config.router_renormalise:
        # Sigmoids may all be 0 (DeepSeek's code); of a softmax the largest is at least 1 / E.
        least = 1e-20 if config.router_score == "sigmoid" else 0
        weights_BTk = weights_BTk / (weights_BTk.sum(-1, keepdims=True) + least)
    return weights_BTk * config.router_scale


def routed(config, logits_BTE, scores_BTE, chosen_BTk, real_BT):
    """What losses and logs want to know of a router, as sums over real tokens.

    count_E: choices. probability_E: of the experts, which sum to 1 for a token. tokens, sequences:
    how many. z: squared logsumexp of logits. sequence: E / (k n) * sum of count * mean probability
    of each sequence of n tokens (arXiv:2412.19437, equations 17 to 20).
    """
    E, k = config.num_experts, config.experts_per_token
    real_BT1 = jnp.ones_like(logits_BTE[..., :1])
    if real_BT is not None:
        real_BT1 = real_BT1 * real_BT[..., None]
    chosen_BTE = one_hot(chosen_BTk, E).any(-2) * real_BT1
    if config.router_score == "sigmoid":
        scores_BTE = scores_BTE / (scores_BTE.sum(-1, keepdims=True) + 1e-20)
    count_BE, probability_BE = chosen_BTE.sum(1), (scores_BTE * real_BT1).sum(1)
    tokens_B = real_BT1.sum((1, 2))
    share_B = (count_BE * probability_BE).sum(-1) / jnp.maximum(tokens_B, 1) ** 2
    return {
        "count_E": count_BE.sum(0),
        "probability_E": probability_BE.sum(0),
        "tokens": tokens_B.sum(),
        "z": (jnp.square(jax.nn.logsumexp(logits_BTE, -1)) * real_BT1[..., 0]).sum(),
        "sequence": E / k * share_B.sum(),
        "sequences": (tokens_B > 0).sum(dtype=tokens_B.dtype),
    }


def capacity(config, length):
    """Tokens that an expert takes of a sequence of `length`; 0 is all that come."""
    factor = config.expert_capacity_factor
    size = config.expert_capacity
    if factor:
        # Less a rounding error, as that of 1.1 * 400 * 2 / 8.
        share = factor * length * config.experts_per_token / config.num_experts
        size = math.ceil(share - 1e-9)
    return min(size, length)


def of_all(config, chosen_BTk):
    """Where choices go when all are taken: (slot_Nk, choice_S, sizes_E); see `outputs`.

    Rows lie expert by expert, sizes_E of each.
    """
    k, E = chosen_BTk.shape[-1], config.num_experts
    choice_S = jnp.argsort(chosen_BTk.ravel(), stable=True)
    sizes_E = jnp.zeros(E, jnp.int32).at[chosen_BTk.ravel()].add(1)
    return jnp.argsort(choice_S).reshape(-1, k), choice_S, sizes_E


def of_sequences(config, size, chosen_BTk, real_BT):
    """Where choices go when an expert takes `size` of a sequence: (slot_Nk, choice_S, None).

    First choices before second ones, and earlier tokens first (arXiv:2006.16668, section 2.2).
    Every expert has `size` rows for each sequence.
    """
    (B, T, k), E = chosen_BTk.shape, config.num_experts
    chosen_BkT, row_B11 = chosen_BTk.swapaxes(1, 2), jnp.arange(B)[:, None, None]
    group_BkT = row_B11 * E + chosen_BkT
    if real_BT is not None:  # padding chooses none
        group_BkT = jnp.where(real_BT[:, None], group_BkT, B * E)
    group_M = group_BkT.ravel()
    sizes_G = jnp.zeros(B * E + 1, jnp.int32).at[group_M].add(1)
    sorted_M = jnp.argsort(jnp.argsort(group_M, stable=True))
    place_BkT = (sorted_M - (jnp.cumsum(sizes_G) - sizes_G)[group_M]).reshape(B, k, T)
    taken_BkT = (place_BkT < size) & (group_BkT < B * E)
    slot_BkT = jnp.where(taken_BkT, (chosen_BkT * B + row_B11) * size + place_BkT, E * B * size)
    slot_Nk = slot_BkT.swapaxes(1, 2).reshape(B * T, k)
    none_S = jnp.full(E * B * size, B * T * k)
    choice_S = none_S.at[slot_Nk.ravel()].set(jnp.arange(B * T * k), mode="drop")
    return slot_Nk, choice_S, None


def outputs(config, x_BTD, weights_BTk, weights, slot_Nk, choice_S, sizes_E):
    """(B, T, D) of one device's N = B * T tokens.

    Row s of the experts is the choice choice_S[s], numbered token by token, and choice j of token n
    is row slot_Nk[n, j]; numbers beyond the last are of none. sizes_E: rows of each expert; None:
    all have as many.
    """
    E, (N, k), D = config.num_experts, slot_Nk.shape, x_BTD.shape[-1]
    rows = taken(x_BTD.reshape(N, D), choice_S // k, slot_Nk)
    if sizes_E is None:
        rows_ERD = rows.reshape(E, -1, D)
        out = feed(config, weights, rows_ERD, jnp.matmul, lambda bias: bias[:, None])
    else:
        expert_S = jnp.repeat(jnp.arange(E), sizes_E, total_repeat_length=len(choice_S))
        product = functools.partial(grouped_matmul, sizes_E=sizes_E)
        out = feed(config, weights, rows, product, lambda bias: bias[expert_S])
    out_NkD = taken(out.reshape(-1, D), slot_Nk, choice_S)
    y_ND = (out_NkD * weights_BTk.reshape(N, k, 1)).sum(1)
    return y_ND.reshape(x_BTD.shape).astype(x_BTD.dtype)


@jax.custom_vjp
def taken(x, index, back):
    """x[index] of rows, 0 beyond the last. back: where in the result each row of x is, so that the
    gradient is taken in the same way: added up in one order, and not scattered.
    """
    return x.at[index].get(mode="fill", fill_value=0)


def _taken_backward(back, gradient):
    gradient = taken(gradient.reshape(-1, gradient.shape[-1]), back, None)
    return gradient if back.ndim == 1 else gradient.sum(1), None, None


taken.defvjp(lambda x, index, back: (taken(x, index, back), back), _taken_backward)


def feed(config, weights, rows, product, spread):
    """The experts' feed-forwards of rows that lie expert by expert.

    product(rows, w): every row times its expert's matrix; spread(bias): every row's bias.
    """

    def affine(name, rows):
        y = product(rows, weights[name])
        if config.feedforward_bias:
            y = (y + spread(weights[f"{name}_bias"])).astype(y.dtype)
        return y

    branched = {name: affine(name, rows) for name in branches(config)}
    return affine("down", activate(config, **branched))


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
