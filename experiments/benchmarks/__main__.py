"""What lm costs beside PyTorch and by itself, each figure beside its target.

    python -m experiments.benchmarks                      # all
    python -m experiments.benchmarks step_time loader     # some

Medians of several measurements. Other work on the machine distorts them: a ratio is of two
processes that took turns, and stands beside its smallest and largest value.
"""

import argparse
import sys

from experiments.benchmarks import measures
from experiments.benchmarks.worker import ROOT

NAMES = ("step_time", "first_step", "import_time", "loader", "saves", "installed")


def main():
    parser = argparse.ArgumentParser("python -m experiments.benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; default: all")
    told = "one that has lm's requirements, may be repeated (this one, and those in .venv-3.*)"
    parser.add_argument("--python", action="append", help=told)
    torch = str(ROOT / ".venv-parity/bin/python")
    parser.add_argument("--torch", default=torch, help="one that has PyTorch (.venv-parity)")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in NAMES]:
        parser.error(f"{unknown[0]} is not one of: {', '.join(NAMES)}")
    others = map(str, sorted(ROOT.glob(".venv-3.*/bin/python")))
    arguments.python = arguments.python or [sys.executable, *others]
    for name in arguments.names or NAMES:
        print(f"\n{name}", flush=True)
        getattr(measures, name)(arguments)


if __name__ == "__main__":
    main()
