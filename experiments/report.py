"""Write one HTML page about runs: curves, what differs, final losses, goodput, samples.

    python -m experiments.report --runs=runs/a --runs=runs/b [--out=report.html] [--samples=2]

A folder stands for all runs in it, and in the folders in it, as sweeps. The page needs no network
and no script. Samples are those of a run's samples.jsonl, which `generate --json` can write, and
with --samples=N so many from its newest checkpoint.
"""

import lm
from experiments import cli
from lm.analysis.report import page, read_run
from lm.errors import RunError, UserError, require
from lm.paths import as_path, write

TOKENS = 100

flags = cli.Parser(__doc__, config="none")
add = flags.add_argument
add("--runs", required=True, action="append", metavar="FOLDER", help="a run, or a folder of runs")
add("--out", default="report.html", metavar="FILE", help="the page (report.html)")
add("--samples", type=int, default=0, metavar="N", help=f"of {TOKENS} tokens, of each run (0)")
add("--prompt", default="", metavar="TEXT", help="what samples continue; without, nothing")


def report(argv):
    arguments = flags.parse(argv)
    number, prompt = arguments.samples, arguments.prompt
    require(number >= 0, f"--samples={number} must be 0 or more.")
    cli.require_folder_of("--out", arguments.out)
    folders = cli.find_runs(arguments.runs)
    names = [folder.name for folder in folders]
    names = names if len({*names}) == len(names) else map(str, folders)
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    for run, folder in zip(runs, folders, strict=True) if number else ():
        try:
            [samples] = lm.generate(lm.load(folder), [prompt], TOKENS, num_samples=number)
            run.samples += [(prompt, sample.text) for sample in samples]
        except (UserError, RunError) as error:
            run.notes.append(f"not sampled: {error}")
    write(as_path(arguments.out, "--out"), page(runs).encode(errors="replace"))
    print(f"report on {len(runs)} run{'s' * (len(runs) > 1)}: {arguments.out}")


if __name__ == "__main__":
    cli.main(report)
