"""Packages and megabytes that lm requires, without extras."""

import importlib.metadata
import re

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
    """What a distribution requires on this machine, and what that requires: a set of names."""
    found, waiting = set(), [(name, "")]
    seen = set(waiting)
    while waiting:
        name, extra = waiting.pop()
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = re.sub(r"[-_.]+", "-", requirement.name).lower()
                found.add(needed)
                for pair in ((needed, part) for part in ("", *requirement.extras)):
                    if pair not in seen:
                        seen.add(pair)
                        waiting.append(pair)
    return found


def size_of(name):
    """Bytes on disk of what pip installed."""
    paths = {file.locate().resolve() for file in importlib.metadata.files(name) or ()}
    return sum(path.stat().st_size for path in paths if path.is_file())
