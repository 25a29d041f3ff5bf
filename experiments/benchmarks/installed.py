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
    found, waiting = set(), [name]
    while waiting:
        for line in importlib.metadata.requires(waiting.pop()) or ():
            requirement = Requirement(line)
            needed = re.sub(r"[-_.]+", "-", requirement.name).lower()
            if needed not in found and (
                requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            ):
                found.add(needed)
                waiting.append(needed)
    return found


def size_of(name):
    """Bytes on disk of what pip installed."""
    paths = {Path(file.locate()).resolve() for file in importlib.metadata.files(name) or ()}
    return sum(path.stat().st_size for path in paths if path.is_file())
