"""curve.png: what a run's metrics.jsonl says, in one picture."""

import io

import numpy as np

from lm.errors import require
from lm.paths import as_path, write

# Okabe and Ito's palette, told apart by every kind of colour vision; its purple darkened for text.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#A84A80"
FEW = 30  # points that are seen better one by one than as a line with its mean


def draw_curve(metrics_rows, path, title=""):
    """Draw losses, and below them learning rate and gradient norm, over steps, as PNG at path.
    metrics_rows: of `lm.track.metrics.read_metrics`. What was not finite is a gap. Raises UserError
    if there is no finite loss.
    """
    from matplotlib.figure import Figure

    names = ("train/loss", "eval/loss", "train/lr", "train/grad_norm")
    training, validation, rate, norm = (series(metrics_rows, name) for name in names)
    require(training or validation, f"no finite loss was logged: there is no {path} to draw.")
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    above, below = axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for panel in axes:
        panel.grid(color="0.9", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    _draw_losses(above, training, validation)
    _draw_optimizer(below, rate, norm)
    above.set_title(title, loc="left")
    below.set_xlabel("step")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write(as_path(path), picture.getvalue())


def series(rows, name):
    """(steps, values) of the rows that have it, NaN where it was not finite; None if all were."""
    rows = [row for row in rows if name in row]
    steps = np.array([row["step"] for row in rows])
    values = np.array([row[name] for row in rows], float)  # None becomes NaN
    return (steps, values) if np.isfinite(values).any() else None


def _draw_losses(panel, training, validation):
    if training:
        steps, losses = training
        if len(steps) < FEW:
            panel.plot(steps, losses, "o-", color=BLUE, markersize=3, label="training")
        else:
            panel.plot(steps, losses, color=BLUE, alpha=0.3, linewidth=0.8)
            panel.plot(steps, smooth(losses), color=BLUE, linewidth=1.8, label="training, smoothed")
            panel.set_ylim(limits(losses, validation))
    if validation:
        steps, losses = validation
        panel.plot(steps, losses, "o-", color=VERMILLION, markersize=5, label="validation")
        last = np.flatnonzero(np.isfinite(losses))[-1]
        place = {"xytext": (0, 9), "textcoords": "offset points", "ha": "right"}
        text = {"color": VERMILLION, "weight": "bold"}
        panel.annotate(f"{losses[last]:.3f}", (steps[last], losses[last]), **place, **text)
    panel.set_ylabel("loss (nats per token)")
    panel.legend(frameon=False, loc="upper right")


def limits(losses, validation):
    """Of the loss's scale: the first 2 % of a run, its plunge, may leave the top."""
    seen = [smooth(losses)[len(losses) // 50 :], *([validation[1]] if validation else [])]
    seen = np.concatenate(seen)
    if not np.isfinite(seen).any():
        return None
    top, bottom = np.nanmax(seen), min(np.nanmin(losses), np.nanmin(seen))
    margin = 0.08 * (top - bottom) or 0.1
    return bottom - margin, top + margin


def _draw_optimizer(panel, rate, norm):
    if rate:
        panel.plot(*rate, color=GREEN, linewidth=1.5)
        panel.set_ylabel("learning rate", color=GREEN)
        panel.set_ylim(bottom=0)
        panel.ticklabel_format(axis="y", scilimits=(-2, 3))
    if norm:
        panel = panel.twinx()
        panel.spines[["top", "left"]].set_visible(False)
        panel.plot(*norm, color=PURPLE, linewidth=0.8)
        log_scale(panel)
        panel.set_ylabel("gradient norm", color=PURPLE)


def log_scale(panel):
    """A logarithmic axis upwards, with few and plain numbers."""
    from matplotlib.ticker import LogLocator

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()


def smooth(values):
    """The mean of the finite values in a window of a 50th of them, centred: it does not lag. NaN
    where the value is.
    """
    window = np.ones(max(1, len(values) // 100) * 2 + 1)
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    count = np.convolve(finite, window, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=finite)
