"""The picture of a scaling law: the runs, where each amount of compute is best spent, and how far
the law is from the runs.
"""

import numpy as np

from lm.analysis.curve import BLUE, GREEN, PURPLE, VERMILLION
from lm.analysis.scaling import chinchilla_law, optimum

NAMES = {"approach_1": "lowest of curves", "approach_2": "equal FLOPs", "chinchilla": "law"}
COLOURS = {"approach_1": GREEN, "approach_2": VERMILLION, "chinchilla": BLUE}


def draw_frontier(runs, p, law, groups, powers, budgets, path):
    """Write a PNG at path. runs: Runs; p: the fit of chinchilla_law and law what is reported of it;
    groups: of `profiles`; powers: {"approach_1" or "approach_2": of `power_law`}; budgets: FLOPs.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    profile, best, error = figure.subplots(1, 3)
    shades = ScalarMappable(LogNorm(runs.flops.min(), runs.flops.max()), "viridis")
    profile.scatter(runs.params, runs.loss, c=shades.to_rgba(runs.flops), s=9)
    for group in groups:
        ends = runs.params[group["rows"]].min(), runs.params[group["rows"]].max()
        params = np.geomspace(*ends, 50)
        colour = shades.to_rgba(group["flops"])
        profile.plot(params, np.polyval(group["curve"], np.log(params)), color=colour)
        profile.plot(group["params"], np.polyval(group["curve"], np.log(group["params"])), "kx")
    profile.set(xscale="log", xlabel="parameters", ylabel="loss (nats per token)")
    profile.set_title("runs, and parabolas of equal FLOPs", loc="left")
    figure.colorbar(shades, ax=profile, label="training FLOPs")

    ends = np.array([runs.flops.min(), max([runs.flops.max(), *budgets])])
    lines = {name: power["params_at_1"] * ends ** power["a"] for name, power in powers.items()}
    lines["chinchilla"] = np.array([optimum(law, flops)["params"] for flops in ends])
    for name, params in lines.items():
        exponent = law["a"] if name == "chinchilla" else powers[name]["a"]
        best.plot(ends, params, color=COLOURS[name], label=f"{NAMES[name]}: C^{exponent:.3f}")
    best.plot([g["flops"] for g in groups], [g["params"] for g in groups], "kx")
    for flops in budgets:
        best.plot(flops, optimum(law, flops)["params"], "o", color=COLOURS["chinchilla"])
    best.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel="best parameters")
    best.set_title("where compute is best spent", loc="left")
    best.legend(frameon=False)

    predicted = np.exp(chinchilla_law(p, np.log(runs.params), np.log(runs.tokens))[0])
    error.axhline(0, color="0.6", linewidth=0.8)
    error.plot(runs.flops, 100 * (runs.loss / predicted - 1), ".", color=PURPLE)
    error.set(xscale="log", xlabel="training FLOPs", ylabel="loss above the law, %")
    error.set_title("how far the runs are from the law", loc="left")
    for panel in (profile, best, error):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.9", linewidth=0.6)
    figure.savefig(path, format="png", dpi=120)
