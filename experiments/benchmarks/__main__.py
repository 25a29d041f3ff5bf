"""What lm costs beside PyTorch and by itself, each figure beside its target.

    python -m experiments.benchmarks                      # all
    python -m experiments.benchmarks step_time loader     # some

Medians of several measurements. Other work on the machine distorts them: a ratio is of two
processes that took turns, and stands beside its smallest and largest value.
"""

import argparse
import sys

from experiments.benchmarks import alone, step_time
from experiments.benchmarks.worker import ROOT

MEASURES = (step_time.step_time, alone.first_step, alone.import_time, alone.loader, alone.saves)
BENCHMARKS = {measure.__name__: measure for measure in (*MEASURES, alone.installed)}


def main(argv):
    parser = argparse.ArgumentParser("python -m experiments.benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; default: all")
    told = "one that has lm's requirements, may be repeated (this one, and those in .venv-3.*)"
    parser.add_argument("--python", action="append", help=told)
    torch = str(ROOT / ".venv-parity/bin/python")
    parser.add_argument("--torch", default=torch, help="one that has PyTorch (.venv-parity)")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"{unknown[0]} is not one of: {', '.join(BENCHMARKS)}")
    others = map(str, sorted(ROOT.glob(".venv-3.*/bin/python")))
    arguments.python = arguments.python or [sys.executable, *others]
    for name in arguments.names or BENCHMARKS:
        print(f"\n{name}", flush=True)
        BENCHMARKS[name](arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
