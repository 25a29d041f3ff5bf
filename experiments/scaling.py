"""Fit scaling laws to runs: how loss falls with parameters and tokens, and what compute buys.

    python -m experiments.scaling --csv=losses.csv --flops=1e22
    python -m experiments.scaling --runs=runs/sweep --json

A CSV has a row for each run: params, tokens or training_flops (6 params tokens), loss or loss_nats.
What is fitted: Chinchilla's parametric law with intervals, Kaplan's law, profiles of equal FLOPs,
and from --curves or --runs the lowest of all curves. The picture shows them all.
"""

import json
import sys

from experiments import cli
from lm.errors import UserError, require, require_path
from lm.plan.topology import chip

flags = cli.Parser(__doc__, config="none")
add = flags.add_argument
often: dict = {"action": "append", "default": []}
add("--csv", metavar="FILE", help="the last loss of each run")
add("--curves", metavar="FILE", help="the same at many steps of each, named in a column `run`")
add("--runs", **often, metavar="FOLDER", help="a run, or a folder of runs; may be repeated")
told = "refuse, if Chinchilla's approach N (1, 2 or 3) cannot be fitted; may be repeated"
add("--approach", type=int, **often, metavar="N", help=told)
add("--drop_highest_loss", type=int, default=0, metavar="N", help="leave out the N highest")
add("--bootstrap", type=int, default=1000, metavar="N", help="resamplings for intervals (1000)")
add("--seed", type=int, default=0, metavar="N", help="of the resamplings")
add("--flops", type=float, **often, metavar="C", help="a budget to spend best; may be repeated")
add("--chip", metavar="KIND", help="to spend it on: v5p, h100, ...")
add("--mfu", type=float, metavar="X", help="model FLOPs utilisation there")
add("--goodput", type=float, default=1.0, metavar="X", help="of the time, training")
add("--watts", type=float, metavar="W", help="of a chip with its share of the host")
add("--pue", type=float, default=1.0, metavar="X", help="the building's overhead")
add("--picture", default="scaling.png", metavar="FILE", help="where to draw")
add("--json", action="store_true", help="print JSON")


def scaling(argv):
    arguments = flags.parse(argv)
    check(arguments)
    from lm.analysis import scaling as laws
    from lm.analysis.frontier import draw_frontier

    last, curves = read(arguments, laws)
    try:
        last = last.without_highest(arguments.drop_highest_loss)
        laws.check_identified(last)
    except UserError as error:
        source = arguments.csv or arguments.curves or ", ".join(arguments.runs)
        raise UserError(f"{source}: {error}") from error
    p, value = laws.fit(laws.chinchilla_law, last)
    told = "loss does not fall with both params and tokens in these rows, so that there is no law; "
    require(laws.is_law(p), told + "look for wrong rows, or add runs of other sizes.")
    law = laws.chinchilla(p, value)
    groups = laws.profiles(last)
    powers, missing = approaches(curves, groups, laws)
    for number in arguments.approach:
        why = missing.get(number)
        require(not why, f"--approach={number} is not possible: {why}")
    how = arguments.bootstrap, arguments.seed, arguments.flops, shown
    intervals = laws.bootstrap(last, p, *how)
    report = {
        "rows": len(last),
        **law,
        "intervals": intervals,
        **powers,
        "not_fitted": missing,
        "kaplan": laws.kaplan(*laws.fit(laws.kaplan_law, last)),
        "optima": [
            {"flops": c, **laws.optimum(law, c), **spent(c, arguments)} for c in arguments.flops
        ],
    }
    draw_frontier(last, p, law, groups, powers, arguments.flops, arguments.picture)
    print(json.dumps(report, indent=2) if arguments.json else text(report))
    print(f"picture: {arguments.picture}", file=sys.stderr)


def check(arguments):
    """Refuse flags that are impossible, alone or together."""
    one = bool(arguments.csv or arguments.curves) != bool(arguments.runs)
    require(one, "give --csv=FILE or --curves=FILE, or else --runs=FOLDER, to read losses from.")
    require(arguments.bootstrap >= 10, f"--bootstrap={arguments.bootstrap} must be 10 or more.")
    for number in arguments.approach:
        require(number in (1, 2, 3), f"--approach={number} is not known; there are 1, 2 and 3.")
    given = [(name, getattr(arguments, name)) for name in ("mfu", "goodput", "watts", "pue")]
    for name, value in [*given, *(("flops", value) for value in arguments.flops)]:
        most = 1 if name in ("mfu", "goodput") else sys.float_info.max
        allowed = "more than 0" + (" and at most 1" if most == 1 else "")
        require(value is None or 0 < value <= most, f"--{name}={value} must be {allowed}.")
    told = f"--pue={arguments.pue} must be 1 or more: the building's energy over the chips'."
    require(arguments.pue >= 1, told)
    energy = [arguments.chip, arguments.mfu, arguments.watts]
    given = any(energy) or arguments.pue != 1 or arguments.goodput != 1
    told = "what a budget costs in energy needs all of --chip, --mfu and --watts."
    require(None not in energy or not given, told)
    told = "--chip needs --flops=C, the budget to spend on it."
    require(not any(energy) or arguments.flops, told)
    if arguments.chip:
        chip(arguments.chip)
    require_path("--picture", arguments.picture)
    cli.require_folder_of("--picture", arguments.picture)


def shown(resamplings):
    """The same, with a bar on stderr where that is a terminal."""
    from rich import console, progress

    stderr, hidden = console.Console(stderr=True), not sys.stderr.isatty()
    return progress.track(
        resamplings, "resamplings", console=stderr, transient=True, disable=hidden
    )


def read(arguments, laws):
    """(Runs at their ends, Runs of curves or None)"""
    curves = None
    if arguments.runs:
        curves = laws.joined([laws.read_run(folder) for folder in cli.find_runs(arguments.runs)])
    elif arguments.curves:
        curves = laws.read_csv(arguments.curves)
        told = f"{arguments.curves} has no column run, which tells the curves apart; add it."
        require(curves.names is not None, told)
    return laws.read_csv(arguments.csv) if arguments.csv else laws.last_rows(curves), curves


def approaches(curves, groups, laws):
    """({"approach_1", "approach_2": power law}, {number: why it is not there})"""
    powers, missing = {}, {}
    if curves is None:
        missing[1] = "it needs losses during the runs; give --curves=FILE or --runs=FOLDER."
    else:
        try:
            powers["approach_1"] = laws.power_law(*laws.lowest(curves))
        except UserError as error:
            missing[1] = str(error)
    told = "it needs 2 or more groups of 5 sizes with about equal FLOPs, the best size within"
    if len(groups) < 2:
        missing[2] = f"{told}; there are {len(groups)}."
    else:
        points = [(group["flops"], group["params"]) for group in groups]
        powers["approach_2"] = laws.power_law(*zip(*points, strict=True))
    return powers, missing


def spent(flops, arguments):
    """{"chip_hours", "megawatt_hours"} of so many FLOPs; {} where no chip is given."""
    if arguments.chip is None:
        return {}
    peak = chip(arguments.chip).flops["bfloat16"]
    hours = flops / (peak * arguments.mfu * arguments.goodput) / 3600
    return {"chip_hours": hours, "megawatt_hours": hours * arguments.watts * arguments.pue / 1e6}


def text(report):
    """A report to be read by people."""
    lines = [f"loss = E + A / N^alpha + B / D^beta, of {report['rows']} runs, with 95 % intervals"]
    for name in ("E", "A", "B", "alpha", "beta", "a", "b"):
        low, high = report["intervals"][name]
        note = {"a": "   N ~ C^a", "b": "   D ~ C^b"}.get(name, "")
        lines.append(f"  {name:6}{report[name]:12.5g}   {low:.5g} to {high:.5g}{note}")
    lines.append(f"  objective {report['objective']:.7f}")
    if report["E"] < 1e-3:
        lines.append("  E is not identified: these losses fall as if to 0; larger runs tell it")
    told = {"approach_1": "lowest of curves", "approach_2": "profiles of equal FLOPs"}
    for name, words in told.items():
        if name in report:
            power = report[name]
            lines.append(f"{words}: N ~ C^{power['a']:.3f}, from {power['points']} points")
    lines += [f"no approach {number}: {why}" for number, why in report["not_fitted"].items()]
    form = (
        "Kaplan's law: N_c {N_c:.3g}, D_c {D_c:.3g}, alpha_N {alpha_N:.4f}, alpha_D {alpha_D:.4f}"
    )
    lines.append((form + ", objective {objective:.7f}").format(**report["kaplan"]))
    for best in report["optima"]:
        name = f"{best['flops']:g}"
        low, high = report["intervals"][f"params at {name}"]
        line = f"{name} FLOPs: {best['params']:.3g} parameters ({low:.3g} to {high:.3g}), "
        line += f"{best['tokens']:.3g} tokens, loss {best['loss']:.3f}"
        if "chip_hours" in best:
            line += f", {best['chip_hours']:,.0f} chip hours, {best['megawatt_hours']:,.3g} MWh"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    cli.main(scaling)
