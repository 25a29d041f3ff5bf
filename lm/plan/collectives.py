"""What a compiled program moves between devices, read from its text (HLO).

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs.
"""

import math
import re

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
# Its name, shape and operation, and what follows; no shape, or tuple of them, holds " word(".
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=\{?(%?[\w.\-]+(?:, %[\w.\-]+)*)")


def collectives(text):
    """{kind: {"executions": how often a device takes part, "bytes": of all those tensors}}.

    text: of a compiled program. A tensor's bytes are those of the larger of what a device gives and
    what it gets: of an all-gather the whole, of a reduce-scatter the whole that is summed. A fusion
    of an all-reduce with a slice, which is how TPUs scatter sums, is a reduce-scatter.
    """
    computations, entry = _computations(text)
    found = {kind: {"executions": 0, "bytes": 0} for kind in KINDS}
    _count(entry, 1, computations, found)
    return {kind: counts for kind, counts in found.items() if counts["executions"]}


def _computations(text):
    """({name: [(name, shape, operation, rest)]}, name of the entry)."""
    computations, entry, current = {}, None, []
    for line in text.splitlines():
        head = COMPUTATION.match(line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif found := INSTRUCTION.match(line):
            current.append(found.groups())
    assert entry is not None
    return computations, entry


def _count(name, times, computations, found):
    for instruction, shape, operation, rest in computations[name]:
        kind = operation.removesuffix("-start")
        if kind in found:
            started = operation != kind and kind != "all-reduce"
            _add(found, kind, times, shape, rest, computations[name], started)
            continue
        called = [
            called.lstrip("%") for group in CALLED.findall(rest) for called in group.split(", ")
        ]
        if "all-reduce-scatter" in instruction or any("all-reduce-scatter" in c for c in called):
            _add(found, "reduce-scatter", times, shape, rest, computations[name])
            continue
        repeats = _trips(rest, computations) if operation == "while" else 1
        if operation not in ("reduce", "scatter", "sort", "map", "reduce-window"):
            for other in called:
                _count(other, times * repeats, computations, found)


def _add(found, kind, times, shape, rest, instructions, started=False):
    operands = set(re.findall(r"%([\w.\-]+)", rest.split("), ")[0]))
    given = sum(_bytes(shape) for name, shape, *_ in instructions if name in operands)
    # What a "-start" results in is a tuple of its operands, its results and words for its "-done".
    got = _bytes(shape.replace("u32[]", "")) - given if started else _bytes(shape)
    found[kind]["executions"] += times
    found[kind]["bytes"] += times * max(given, got)


def _trips(rest, computations):
    """How often a loop runs: as XLA says, or the constant that its condition compares with."""
    known = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', rest)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    assert condition, rest
    constants = [
        int(found[1])
        for _, shape, operation, args in computations[condition[1]]
        if operation == "constant" and (found := re.match(r"(\d+)\)", args))
    ]
    assert len(constants) == 1, f"a loop whose number of rounds is not in {condition[1]}"
    return constants[0]


def _bytes(shape):
    total = 0
    for dtype, dims in re.findall(r"([a-z]\w*)\[([\d,]*)\]", shape):
        bits = BITS.get(dtype) or int(re.sub(r"\D.*", "", dtype.lstrip("fsuc")) or 0)
        total += bits * math.prod(int(size) for size in dims.split(",") if size)
    return total // 8
