"""Runs side by side in one HTML page that needs nothing outside itself: no script, no network.

What a run did not record is said to be not measured; nothing is guessed. Pictures are SVG, which
the page inverts where the reader's screen is dark.
"""

import dataclasses
import datetime
import html
import io
import json
import math
import operator
import re
import shlex
import string

import numpy as np

from lm.analysis.curve import BLUE, GREEN, PURPLE, VERMILLION, limits, log_scale, series, smooth
from lm.config import flatten
from lm.track.metrics import read_metrics

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, "#8A6D00", "#6B6B6B")
LINES = ("solid", "dashed", "dotted")  # when the colours are used up
LOOK: dict = {"font.size": 10, "svg.fonttype": "none", "text.parse_math": False}
LOOK |= {"axes.grid": True, "grid.color": "0.86", "grid.linewidth": 0.6}
LOOK |= {"axes.spines.top": False, "axes.spines.right": False}
NOT_RECORDED = "not recorded"
POINTS = 300  # of a curve
LOSSES = {"eval/loss": "validation loss", "train/loss": "smoothed training loss"}
CURVES = {
    "train/loss": "training loss, smoothed (nats per token)",
    "eval/loss": "validation loss (nats per token)",
    "train/lr": "learning rate",
    "train/grad_norm": "gradient norm, smoothed",
}


@dataclasses.dataclass
class Run:
    """What is known of a run. config: {dotted key: value}. rows: of `read_metrics`. starts: of
    environment.json. samples: [(prompt, text)]. notes: what is missing or damaged.
    """

    name: str
    config: dict
    rows: list
    starts: list
    samples: list
    notes: list

    @property
    def damaged(self):
        """The notes on files that are there and cannot be read."""
        return [note for note in self.notes if "there is no" not in note]

    def last(self, name):
        """The last value logged, NaN if it was not finite; None if there is none."""
        found = [row[name] for row in self.rows if name in row]
        return None if not found else math.nan if found[-1] is None else found[-1]

    def measured(self, name):
        """The last value logged that is one; None if there is none."""
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)

    def steps(self):
        """How many were trained, as far as is logged."""
        return max((row["step"] + 1 for row in self.rows if "train/loss" in row), default=0)

    def tokens_per_step(self):
        """None if the configuration does not say."""
        rows, length = (self.config.get(f"data.{x}") for x in ("batch_size", "sequence_length"))
        return rows * length if rows and length else None

    def final_loss(self, name):
        """The last, of training smoothed. NaN: it, or the last of training, was not finite. None:
        none was logged.
        """
        last, training = self.last(name), self.last("train/loss")
        if last is None or math.isnan(last) or math.isnan(training or 0):
            return None if last is None else math.nan
        return last if name == "eval/loss" else float(smooth(series(self.rows, name)[1])[-1])

    def seconds(self):
        """From the first start to the last logged step; None: not recorded."""
        times = [row["time"] for row in self.rows if "time" in row]
        if not (times and self.starts):
            return None
        start = datetime.datetime.fromisoformat(self.starts[0]["start"])
        return max(times) - start.timestamp()

    def goodput(self):
        """The share of `seconds` in which it trained
        the steps that it has, each taken as the median at most: the rest is compilation,
        evaluation, saves, steps done again, and what lay between starts. None: not recorded.
        """
        rows, passed = (
            [row for row in self.rows if row.get("train/tokens_per_second")],
            self.seconds(),
        )
        if not (rows and passed and self.tokens_per_step()):
            return None
        rates = np.array([row["train/tokens_per_second"] for row in rows])
        seconds, steps = self.tokens_per_step() / rates, np.diff([-1, *(r["step"] for r in rows)])
        trained = (steps * np.minimum(seconds, np.median(seconds))).sum()
        return trained / passed if trained <= passed else None  # else the clocks differ


def read_run(folder, name):
    """The Run in a folder. What is missing or damaged becomes a note."""
    run = Run(name, {}, [], [], [], [])

    def samples(path):
        found = map(json.loads, path.read_text().splitlines())
        return [(sample["prompt"], sample["text"]) for sample in found]

    read, by_start = lambda path: json.loads(path.read_text()), operator.itemgetter("start")
    for file, part, parse in (
        ("config.json", "config", lambda path: flatten(read(path))),
        ("metrics.jsonl", "rows", read_metrics),
        ("environment.json", "starts", lambda path: sorted(read(path), key=by_start)),
        ("samples.jsonl", "samples", samples),
    ):
        try:
            setattr(run, part, parse(folder / file))
        except FileNotFoundError:
            run.notes += [] if part == "samples" else [f"there is no {file}"]
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            run.notes.append(f"{file}: {error}")
    return run


def differing(runs):
    """{dotted key: its value in each run} of the keys in which known configurations differ."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    values = {key: [run.config.get(key, NOT_RECORDED) for run in runs] for key in keys}
    known = [i for i, run in enumerate(runs) if run.config]
    return {key: x for key, x in values.items() if any(x[i] != x[known[0]] for i in known)}


def is_number(value):
    """Whether it is finite and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def written(value):
    """A value of a configuration as text, which a picture can hold too."""
    return value if isinstance(value, str) and value and value.isprintable() else json.dumps(value)


def style(index):
    """(colour, kind of line) of a run."""
    return COLOURS[index % len(COLOURS)], LINES[index // len(COLOURS) % len(LINES)]


def picture(caption, draw, *arguments, height=3.0):
    """The <figure> of what draw(axes, *arguments) draws; height in inches, of a width of 5."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**LOOK, "svg.hashsalt": caption}), io.StringIO() as file:
        figure = Figure(figsize=(5, height), layout="constrained")
        draw(figure.subplots(), *arguments)
        figure.savefig(file, format="svg", transparent=True)
        svg = file.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :].replace("xlink:href", "href")
    body = re.sub("<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub('<g id="[^"]*"', "<g", body)  # the same in each picture
    caption = html.escape(caption)
    view = f'role="img" aria-label="{caption}" viewBox="0 0 360 {72 * height:g}"'
    return f"<figure><figcaption>{caption}</figcaption><svg {view}>{body}</figure>"


def draw_curves(panel, name, found):
    """found: for each run its `series`, or None."""
    scales = []
    for index, (steps, values) in ((i, of_run) for i, of_run in enumerate(found) if of_run):
        if "smoothed" in CURVES[name]:
            scales.append(limits(values, None))
            values = smooth(values)
        few = np.unique(np.linspace(0, len(steps) - 1, POINTS).astype(int))
        colour, line = style(index)
        mark = "o" if name == "eval/loss" or len(steps) == 1 else None
        panel.plot(steps[few], values[few], color=colour, ls=line, lw=1.4, marker=mark, ms=4)
    panel.set_xlabel("step")
    if name == "train/grad_norm":
        log_scale(panel)
    else:
        panel.ticklabel_format(axis="y", scilimits=(-2, 4))
    if name == "train/loss" and (scales := list(filter(None, scales))):
        panel.set_ylim(min(low for low, _ in scales), max(high for _, high in scales))


def draw_slice(panel, key, points):
    """points: (value of the key, final loss, colour, whether the run is at its end)."""
    values = sorted({value for value, *_ in points})
    panel.set_xscale("log" if values[0] > 0 else "linear")
    panel.set_xticks([value for _, value in spaced(positions(values), values)])
    panel.xaxis.set_major_formatter("{x:.4g}")
    panel.minorticks_off()
    for value, loss, colour, ended in points:
        panel.plot(value, loss, "o", color=colour, mfc=colour if ended else "white", ms=7)
    panel.margins(0.1)
    panel.set_xlabel(key)


def draw_parallel(panel, columns):
    """Each key a line across, each run one downwards. columns: {key: values}; the last is the loss,
    which colours the runs from blue to orange.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    panel.set_axis_off()
    text = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}, "zorder": 3}
    rows = -np.arange(len(columns))
    places = np.array([positions(values) for values in columns.values()])
    for row, (key, values), xs in zip(rows, columns.items(), places, strict=True):
        panel.plot([0, 1], [row, row], color="black", lw=0.8)
        panel.text(0.02, row + 0.13, key, va="bottom", weight="bold", fontsize=10, **text)
        for x, value in spaced(xs, values):
            label = f"{value:.4g}" if is_number(value) else written(value)[-24:]
            side = "left" if x < 0.1 else "right" if x > 0.9 else "center"
            panel.text(x, row - 0.1, label, va="top", ha=side, fontsize=9, **text)
    ramp = LinearSegmentedColormap.from_list("loss", ["#1E80C0", "#808080", "#DD6510"])
    for run in np.argsort(-places[-1]):  # the best on top
        panel.plot(places[:, run], rows, "o-", color=to_hex(ramp(places[-1, run])), lw=2, ms=4)
    panel.set_xlim(-0.03, 1.03)
    panel.set_ylim(rows[-1] - 0.45, 0.5)


def ranks(values):
    """The place of each value among them all, from 0: numbers by size, then texts."""
    keys = [(not is_number(x), x if is_number(x) else 0, written(x)) for x in values]
    order = sorted({*keys})
    return np.array([order.index(key) for key in keys])


def positions(values):
    """Where values, of which two differ, lie in [0, 1]: by size, or its logarithm, if numbers."""
    sizes = np.array(values, float) if all(map(is_number, values)) else ranks(values)
    sizes = np.log(sizes) if sizes.min() > 0 else sizes
    return (sizes - sizes.min()) / np.ptp(sizes)


def spaced(places, values):
    """[(place, value)] of the first, the last and those between that have room for a label."""
    kept = []
    for place, value in sorted(zip(places, values, strict=True), key=lambda x: x[0] not in (0, 1)):
        if all(abs(place - other) > 0.18 for other, _ in kept):
            kept.append((place, value))
    return kept


def sweep_pictures(runs, keys, losses, loss):
    """Parallel coordinates of the keys, and the final loss over each that is a number. Of keys in
    which the runs have the same order, or its reverse, the first stands for all.
    """
    known = [i for i, value in enumerate(losses) if is_number(value) and runs[i].config]
    final, groups = [losses[i] for i in known], {}
    for key, values in keys.items():
        values = [values[i] for i in known]
        order = ranks(values).tolist()
        order = min(order, [max(order) - rank for rank in order])
        groups.setdefault(tuple(order), {})[key] = values
    groups = [group for order, group in groups.items() if any(order)]
    if len(set(final)) < 2 or not groups:
        return []
    columns = {key: values for group in groups for key, values in list(group.items())[:1]}
    told = f"each run a line, from blue, the lowest {loss}, to orange"
    rows = {**columns, f"final {loss}": final}
    pictures = [picture(told, draw_parallel, rows, height=0.75 * len(rows))]
    ended = [runs[i].steps() >= runs[i].config.get("train.num_steps", 0) for i in known]
    for group, (key, values) in zip(groups, columns.items(), strict=True):
        points = zip(values, final, [style(i)[0] for i in known], ended, strict=True)
        points = [point for point in points if is_number(point[0])]
        if len({value for value, *_ in points}) > 1:
            told = f"{loss} over {', '.join(group)}" + "; hollow: not at its end" * (not all(ended))
            pictures.append(picture(told, draw_slice, key, points, height=2.6))
    return pictures


def cell(value):
    """A value of a table as HTML."""
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else "not finite"
    return "not measured" if value is None else html.escape(str(value))


def table(names, rows):
    """names: of the runs, as HTML. rows: {column: value} of each. A row that is too wide becomes a
    block, in which values have labels.
    """
    labels = [html.escape(column) for column in ("run", *rows[0])]
    heads = [re.sub("([._])", r"\1<wbr>", label) for label in labels]
    kind = ' class="blocks"' * (len(labels) > 10)
    lines = [f"<table{kind}><thead><tr><th>{'</th><th>'.join(heads)}</th></tr></thead><tbody>"]
    for name, row in zip(names, rows, strict=True):
        cells = zip(labels, (name, *map(cell, row.values())), strict=True)
        cells = [f'<td data-label="{label}"><span>{text}</span></td>' for label, text in cells]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody></table>"])


def overview(run, spent):
    """{column: value} of the table of runs. spent: metrics of energy and cost."""
    share, tokens = run.goodput(), run.tokens_per_step()
    return {
        "steps": f"{run.steps()} of {run.config.get('train.num_steps', NOT_RECORDED)}",
        **{title: run.final_loss(name) for name, title in LOSSES.items()},
        "bits per byte": run.last("eval/bits_per_byte"),
        "tokens": tokens and f"{run.steps() * tokens:,}",
        "goodput": share and f"{share:.1%}",
        **{name: run.measured(name) for name in spent},
    }


def origin(run):
    """{column: value} of the table of starts, each value once, and of many times two."""
    found = {"starts": [], "devices": [], "commit": [], "command": []}
    for start in run.starts:
        code, devices = start.get("code") or {}, start.get("devices", {}).items()
        found["starts"].append(start["start"].replace("T", " ").replace("+00:00", " UTC"))
        found["devices"].append(", ".join(f"{count} × {kind}" for kind, count in devices))
        commit, changed = code.get("commit", NOT_RECORDED), code.get("dirty", False)
        found["commit"].append(commit[:12] + ", changed" * changed)
        found["command"].append(shlex.join(start.get("command", [])))
    found["starts"][1:-1] = [f"{len(run.starts) - 2} more"] * (len(run.starts) > 2)
    return {name: " / ".join(dict.fromkeys(x)) or NOT_RECORDED for name, x in found.items()}


def page(runs):
    """The HTML of a report on Runs. The final loss is of validation if all that trained have it."""
    trained = [run for run in runs if run.last("train/loss") is not None]
    validated = all(run.last("eval/loss") is not None for run in trained)
    loss = "eval/loss" if validated else "train/loss"
    losses, keys, names = [run.final_loss(loss) for run in runs], differing(runs), []
    for index, run in enumerate(runs):
        colour, line = style(index)
        names.append(f'<i style="border-top: 3px {line} {colour}"></i> {html.escape(run.name)}')
    logged = {name: [series(run.rows, name) for run in runs] for name in CURVES}
    curves = [
        picture(CURVES[x], draw_curves, x, found) for x, found in logged.items() if any(found)
    ]
    sweep = sweep_pictures(runs, keys, losses, LOSSES[loss])
    metrics = sorted({name for run in runs for row in run.rows for name in row})
    energy, cost = ([x for x in metrics if x.startswith(y)] or [y] for y in ("energy", "cost"))
    values = [{key: written(found[i]) for key, found in keys.items()} for i in range(len(runs))]
    pairs, escape = list(zip(runs, names, strict=True)), html.escape
    parts = {
        "Runs": [table(names, [overview(run, energy + cost) for run in runs])],
        "Notes": [f"<p>{name}: {escape(note)}</p>" for run, name in pairs for note in run.notes],
        "Curves": ['<div class="pictures">', *(curves or ["no finite loss was logged"]), "</div>"],
        "What differs": [table(names, values)] if keys else [],
        f"Final {LOSSES[loss]}": ['<div class="pictures">', *sweep, "</div>"] if sweep else [],
        "Samples": [
            f"<h3>{name}</h3><pre><b>{escape(prompt)}</b>{escape(text)}</pre>"
            for run, name in pairs
            for prompt, text in run.samples
        ],
        "Where they ran": [table(names, [origin(run) for run in runs])],
    }
    lines = [f"<h2>{x}</h2>\n" + "\n".join(found) for x, found in parts.items() if found]
    return TEMPLATE.substitute(
        title=escape(runs[0].name if len(runs) == 1 else f"{len(runs)} runs"),
        now=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        body="\n".join(lines),
        wide=BLOCKS.replace("table", ".blocks"),
        narrow=BLOCKS,
    )


BLOCKS = """\
table thead { display: none } table tr { border: 1px solid #8886; padding: .4rem .6rem }
table tbody { display: grid; gap: 1ex; grid-template-columns: repeat(auto-fill, minmax(17rem,1fr)) }
table td { display: flex; flex-wrap: wrap; align-items: baseline; padding: .1rem 0; border: 0 }
table td + td::before { content: attr(data-label); opacity: .7; font-size: 13px; flex: 0 0 11rem }
table td:first-child { display: block }"""
TEMPLATE = string.Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
@media screen { :root { color-scheme: light dark } }
@media screen and (prefers-color-scheme: dark) {
  body { background: black } svg, i { filter: invert(1) hue-rotate(180deg) } }
* { box-sizing: border-box }
body { max-width: 72rem; margin: auto; padding: 1rem; font: 1rem/1.45 system-ui, sans-serif;
  overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin-top: 2rem } h3 { font-size: 1rem } h2, h3 { break-after: avoid }
table { width: 100%; border-collapse: collapse; font-size: .9rem; text-align: left }
th, td { vertical-align: top; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid #8886 }
th { overflow-wrap: break-word } td { min-width: 5.5rem }
td:first-child { word-break: break-all; min-width: 12rem }
table, tr, figure, pre { break-inside: avoid }
i { display: inline-block; width: 26px; height: 4px } figure { margin: 0 }
.pictures { display: grid; gap: 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)) }
figcaption, pre { font-size: .9em } pre { white-space: pre-wrap }
figure svg { width: 100% } figure text { font-family: system-ui, sans-serif !important }
$wide
@media screen and (max-width: 66rem) { $narrow }
@media print { body { font-size: 9pt; max-width: none; padding: 0 } .pictures { display: block }
  figure { display: inline-block; width: 49%; vertical-align: top }
  table { font-size: 8pt } td { min-width: 3.5rem } }
</style>
</head>
<body>
<h1>$title</h1>
<p>Written $now.</p>
$body
</body>
</html>
""")
