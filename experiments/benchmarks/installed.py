"""Packages and megabytes that lm requires, without extras."""

import importlib.metadata
import re
from pathlib import Path

from packaging.requirements import Requirement

PACKAGES, MEGABYTES = 60, 900


def measure(arguments):
    names = required("lm")
    size = sum(size_of(name) for name in names) / 1e6
    print(
        f"  {len(names)} packages, {size:.0f} MB, lm's own requirements without extras; target "
        f"<= {PACKAGES} and <= {MEGABYTES} MB"
    )


def required(name):
    """The names of what a distribution requires on this machine, and of what that requires."""
    waiting, seen = [(name, "")], {(name, "")}
    while waiting:
        name, extra = waiting.pop()
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = re.sub(r"[-_.]+", "-", requirement.name).lower()
                new = {(needed, part) for part in ("", *requirement.extras)} - seen
                seen |= new
                waiting += new
    return {name for name, _ in seen} - {"lm"}


def size_of(name):
    """Bytes on disk of what pip installed."""
    paths = {Path(file.locate()).resolve() for file in importlib.metadata.files(name) or ()}
    return sum(path.stat().st_size for path in paths if path.is_file())
