"""Scaling laws: how loss falls with parameters N, tokens D and training FLOPs C = 6ND, fitted to
runs as their papers do it.

Kaplan et al. (arXiv:2001.08361, equation 1.5), and the three approaches of Hoffmann et al.
(arXiv:2203.15556, section 3): the lowest of many curves, profiles of equal FLOPs, and a parametric
law. Losses are in nats.
"""

import csv
import dataclasses
import itertools

import numpy as np

from lm.config import build
from lm.errors import UserError, require
from lm.flops import parameter_count
from lm.hub.files import read_json
from lm.nn.config import TransformerConfig
from lm.paths import as_path
from lm.track.metrics import read_metrics

DELTA = 1e-3  # of the Huber loss of log-losses (arXiv:2203.15556, appendix D.2)
PAIRS = "params and one of tokens or training_flops, and loss or loss_nats"


@dataclasses.dataclass(frozen=True)
class Runs:
    """Arrays of one length, a row each: params, tokens, loss (nats per token), all over 0; names of
    the runs, of which the rows of a curve share one, or None.
    """

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    names: np.ndarray | None = None

    @property
    def flops(self):
        return 6 * self.params * self.tokens

    def __len__(self):
        return len(self.loss)

    def __getitem__(self, index):
        names = None if self.names is None else self.names[index]
        return Runs(self.params[index], self.tokens[index], self.loss[index], names)

    def without_highest(self, count):
        """But for the `count` rows of highest loss, which the law of the others does not hold for:
        runs that have hardly begun.
        """
        told = f"--drop_highest_loss={count} is not possible with {len(self)} rows; drop fewer."
        require(0 <= count < len(self), told)
        return self[np.sort(np.argsort(self.loss, kind="stable")[: len(self) - count])]


def read_csv(path):
    """Runs of a CSV file with a header: params, tokens or training_flops, loss or loss_nats, and
    for curves a column `run`. Raises UserError that names file, line and value.
    """
    path = as_path(path, "--csv")
    require(path.is_file(), f"{path} is not a file; give a CSV with the columns {PAIRS}.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8 ({error}).") from error
    loss = next((name for name in ("loss", "loss_nats") if name in columns), None)
    size = next((name for name in ("tokens", "training_flops") if name in columns), None)
    told = f"{path} has the columns {', '.join(columns) or 'none'}; it needs {PAIRS}."
    require("params" in columns and loss and size, told)
    require(rows, f"{path} has no rows; give at least one for each run.")
    params, tokens, losses = (
        np.array([_number(path, line, row, name) for line, row in enumerate(rows, 2)])
        for name in ("params", size, loss)
    )
    tokens = tokens / 6 / params if size == "training_flops" else tokens
    names = np.array([row["run"] for row in rows]) if "run" in columns else None
    return Runs(params, tokens, losses, names)


def _number(path, line, row, name):
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = np.nan
    told = (
        f"{path}, line {line}: {name}={row[name]!r} must be a finite number over 0; mend the row "
    )
    require(np.isfinite(value) and value > 0, f"{told}or leave it out.")
    return value


def joined(parts):
    """One Runs of several, all with names."""
    names = ("params", "tokens", "loss", "names")
    return Runs(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


# Laws: (parameters of the fit, ln N, ln D) -> (ln loss, its derivatives, a row per parameter).


def chinchilla_law(p, n, d):
    """L = E + A N^-alpha + B D^-beta (arXiv:2203.15556, equation 2), by (ln A, ln B, ln E, alpha,
    beta).
    """
    y, (a, b, e) = _log_sum(p[0] - p[3] * n, p[1] - p[4] * d, np.full_like(n, p[2]))
    return y, np.stack([a, b, e, -a * n, -b * d])


def kaplan_law(p, n, d):
    """L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D (arXiv:2001.08361, equation 1.5), by
    (ln N_c, ln D_c, alpha_N, alpha_D).
    """
    nc, dc, of_n, of_d = p
    y, (a, b) = _log_sum((nc - n) * of_n / of_d, dc - d)
    ratio = a * (nc - n)
    return of_d * y, np.stack([a * of_n, b * of_d, ratio, y - ratio * of_n / of_d])


def _log_sum(*terms):
    """(log of the sum of exponentials, the share of each in it)"""
    terms = np.stack(terms)
    top = terms.max(0)
    shares = np.exp(terms - top)
    total = shares.sum(0)
    return top + np.log(total), shares / total


HALVES, EXPONENTS = (0, 0.5, 1, 1.5, 2), (0.05, 0.1, 0.2, 0.4)
STARTS = {  # Chinchilla's are the grid of appendix D.2
    chinchilla_law: (range(0, 30, 5), range(0, 30, 5), (-1, -0.5, 0, 0.5, 1), HALVES, HALVES),
    kaplan_law: (range(20, 60, 10), range(20, 60, 10), EXPONENTS, EXPONENTS),
}


def objective(law, p, runs):
    """(the sum over rows of the Huber loss of log-losses, in units of DELTA squared, gradient).

    The sum: divided by the rows it is so flat that a minimiser stops early.
    """
    y, slopes = law(p, np.log(runs.params), np.log(runs.tokens))
    residual = y - np.log(runs.loss)
    size, slope = np.abs(residual), np.clip(residual, -DELTA, DELTA)
    huber = np.where(size < DELTA, residual**2 / 2, DELTA * (size - DELTA / 2))
    return huber.sum() / DELTA**2, slopes @ slope / DELTA**2


def fit(law, runs, starts=None, best=20):
    """(the law's parameters with the lowest objective, that objective as papers give it).

    By L-BFGS from the `best` of the grid of starts, of which half lead to the same minimum; or from
    the starts given.
    """
    from scipy.optimize import minimize

    if starts is None:
        grid = list(itertools.product(*STARTS[law]))
        values = [objective(law, start, runs)[0] for start in grid]
        starts = [grid[index] for index in np.argsort(values, kind="stable")[:best]]
    exact = {"maxiter": 3000, "maxfun": 6000, "ftol": 1e-13, "gtol": 1e-8}
    how = {"jac": True, "method": "L-BFGS-B", "options": exact}
    with np.errstate(all="ignore"):  # a line search may overflow, and goes back
        found = [minimize(lambda p: objective(law, p, runs), start, **how) for start in starts]
    found = min((each for each in found if np.isfinite(each.fun)), key=lambda each: each.fun)
    return found.x, float(found.fun) * DELTA**2


def check_identified(runs, law=chinchilla_law):
    """Raise UserError unless the rows can tell the law's parameters apart."""
    count, needed = len(STARTS[law]), 2 * len(STARTS[law])
    told = "1 row is" if len(runs) == 1 else f"{len(runs)} rows are"
    told += f" too few to identify the {count} parameters of the law; give "
    require(len(runs) >= needed, f"{told}{needed} or more.")
    n, d = np.log(runs.params), np.log(runs.tokens)
    for name, x in (("params", n), ("tokens", d)):
        count = len(np.unique(np.round(x, 3)))
        told = f"the rows have {count} different {name}, and an exponent needs 3 or more; add runs "
        require(count >= 3, f"{told}with other {name}.")
    spread = np.linalg.svd(np.stack([n - n.mean(), d - d.mean()]), compute_uv=False)
    told = "params and tokens rise together in all rows, so that what each does to the loss cannot "
    told += "be told apart; add runs with other tokens at the same params."
    require(spread[1] > 0.02 * spread[0], told)


def chinchilla(p, value):
    """What is reported of chinchilla_law's parameters: a and b are the exponents of the
    compute-optimal N ~ C^a and D ~ C^b.
    """
    alpha, beta = p[3:]
    both = alpha + beta
    scales = dict(zip("ABE", np.exp(p[:3]).tolist(), strict=True))
    named = {**scales, "alpha": alpha, "beta": beta, "a": beta / both, "b": alpha / both}
    return {name: float(x) for name, x in named.items()} | {"objective": value}


def is_law(p):
    """Whether loss falls with both params and tokens, by numbers that can be written down."""
    return bool(np.isfinite(p).all() and (p[:3] < 700).all() and (p[3:] > 1e-3).all())


def kaplan(p, value):
    """What is reported of kaplan_law's parameters."""
    named = {"N_c": np.exp(p[0]), "D_c": np.exp(p[1]), "alpha_N": p[2], "alpha_D": p[3]}
    return {name: float(x) for name, x in named.items()} | {"objective": value}


def optimum(law, flops):
    """{"params", "tokens", "loss"} of the lowest loss of so many FLOPs (arXiv:2203.15556, equation
    4); law: as `chinchilla` gives it.
    """
    both = law["alpha"] + law["beta"]
    ratio = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / both)
    params = ratio * (flops / 6) ** law["a"]
    tokens = flops / 6 / params
    loss = law["E"] + law["A"] * params ** -law["alpha"] + law["B"] * tokens ** -law["beta"]
    return {"params": params, "tokens": tokens, "loss": loss}


def bootstrap(runs, p, count, seed=0, flops=(), shown=iter):
    """{name: [2.5 %, 97.5 %]} of what `chinchilla` reports, over `count` resamplings of the rows,
    each fitted from the fit of all rows, but for those whose fit is no law; and at each of flops
    the optimum's, as "params at 1e+21". shown: goes through what it is given, and shows how far.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in shown(range(count)):
        sample = runs[rng.integers(0, len(runs), len(runs))]
        fitted = fit(chinchilla_law, sample, [p])
        if not is_law(fitted[0]):
            continue
        law = chinchilla(*fitted)
        for budget in flops:
            best = optimum(law, budget)
            law |= {f"{name} at {budget:g}": best[name] for name in best}
        found.append(law)
    ends = (2.5, 97.5)
    return {name: np.percentile([x[name] for x in found], ends).tolist() for name in found[0]}


WIDTH = 0.1  # of a profile: its runs' FLOPs lie within 10 %


def profiles(runs):
    """[{"flops", "rows", "params", "curve"}]: groups of runs of about equal FLOPs, the rows in
    each, the N of the parabola's lowest point (arXiv:2203.15556, section 3.2), and the parabola of
    loss over ln N as np.polyval takes it.

    Groups are taken where most runs are. One with fewer than 5 sizes, or whose best size, or the
    parabola's, is not between others, is left out.
    """
    logs, left, found = np.log(runs.flops), np.arange(len(runs)), []
    while len(left) >= 5:
        inside = [np.flatnonzero(np.abs(logs[left] - x) <= np.log1p(WIDTH) / 2) for x in logs[left]]
        rows = left[max(inside, key=len)]
        left = np.setdiff1d(left, rows)
        n, loss = np.log(runs.params[rows]), runs.loss[rows]
        best = n[loss.argmin()]
        if len(np.unique(np.round(n, 3))) < 5 or best in (n.min(), n.max()):
            continue
        curve = np.polyfit(n, loss, 2)
        lowest = -curve[1] / (2 * curve[0])
        if curve[0] > 0 and n.min() < lowest < n.max():
            flops = float(np.exp(logs[rows].mean()))
            group = {"flops": flops, "rows": rows, "params": float(np.exp(lowest)), "curve": curve}
            found.append(group)
    return sorted(found, key=lambda group: group["flops"])


def lowest(curves, points=1500):
    """(flops, params) where the lowest of all curves is, at `points` FLOPs in equal ratios
    (arXiv:2203.15556, section 3.1). curves: Runs with names.
    """
    by_run = [curves[curves.names == name] for name in np.unique(curves.names)]
    by_run = [run[np.argsort(run.tokens)] for run in by_run if len(run) > 1]
    ends = np.array([(run.flops[0], run.flops[-1]) for run in by_run]).reshape(-1, 2)
    told = f"{len(ends)} curves of two points or more are too few for the first approach; give 3."
    require(len(ends) >= 3, told)
    grid = np.geomspace(ends[:, 0].min(), ends[:, 1].max(), points)
    outside, x = {"left": np.inf, "right": np.inf}, np.log(grid)
    losses = [np.interp(x, np.log(run.flops), run.loss, **outside) for run in by_run]
    best, params = np.argmin(losses, 0), np.array([run.params[0] for run in by_run])
    seen = np.isfinite(np.min(losses, 0))
    return grid[seen], params[best[seen]]


def power_law(flops, params):
    """{"a", "b", "params_at_1", "points"}: N = params_at_1 * C^a, D ~ C^b, by least squares."""
    a, start = np.polyfit(np.log(flops), np.log(params), 1)
    power = {"a": float(a), "b": float(1 - a), "params_at_1": float(np.exp(start))}
    return {**power, "points": len(flops)}


def read_run(workdir):
    """The curve of one run, named by its folder: its evaluations, or its training losses where
    there are none.
    """
    workdir = as_path(workdir, "--runs")
    config = read_json(workdir / "config.json")
    model, data = config.get("model"), config.get("data")
    require(model and data, f"{workdir} is no run's folder: its config.json has no model and data.")
    rows = read_metrics(workdir / "metrics.jsonl")
    name = "eval/loss" if any(row.get("eval/loss") for row in rows) else "train/loss"
    rows = [(row["step"], row[name]) for row in rows if row.get(name) and row["step"] > 0]
    require(rows, f"{workdir} has logged no loss yet; let it train first.")
    steps, losses = np.array(rows, float).T
    params = np.full(len(rows), float(parameter_count(build(TransformerConfig, model))))
    tokens = steps * data["batch_size"] * data["sequence_length"]
    return Runs(params, tokens, losses, np.full(len(rows), str(workdir)))


def last_rows(curves):
    """The last row of each curve."""
    order = np.argsort(-curves.tokens, kind="stable")
    _, first = np.unique(curves.names[order], return_index=True)
    return curves[np.sort(order[first])]
