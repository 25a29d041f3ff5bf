"""The train step of Llama 3 8B compiled for hardware that is not here, beside MaxText's own.

    make aot        # minutes for each row; the picture is build/aot.png

float32 weights, gradients and moments, bfloat16 products, AdamW, scanned layers, pure FSDP, nothing
offloaded. GiB of a device; a row is a slice, the sequences of a chip, their length, and what is
recomputed (of "minimal" attention and what follows it up to the feed-forward), with MaxText's
temporaries and total where they are known; and what is alive at the worst moment, arguments too.
"""

import json
import math
import sys
from pathlib import Path

from configs.llama import llama3_8b
from lm.config import resolve
from lm.plan.topology import topology_devices, without_devices

MINIMAL = "query,key,value,gate,up"
ROWS = (
    ("v5p:2x2x2", 1, 4096, "full", 7.27, 18.53),
    ("v5p:2x2x4", 1, 4096, "full", 4.94, 10.59),
    ("v5p:2x2x4", 2, 4096, "full", 7.96, 13.62),
    ("v5p:2x2x4", 1, 8192, "full", 7.96, 13.62),
    ("v5p:2x2x4", 1, 4096, MINIMAL, 14.44, 20.09),
    ("v6e:8x8", 1, 4096, "full", 4.25, 5.70),
    ("v5e:4x8", 1, 4096, "full", None, None),
    ("h100:1x8", 1, 4096, "full", None, None),
    ("h100:2x8", 1, 4096, "full", None, None),
)
SLICES = ("v5p:2x2x4", "v5p:4x4x4", "v5p:4x8x8", "v5p:8x8x16")


def costs(topology, rows_of_chip=1, length=4096, remat="full"):
    from lm.plan.compile import compiled_costs

    devices = topology_devices(topology)
    keys = llama3_8b()
    keys.mesh.update(data=1, fsdp=-1)
    keys.data.update(batch_size=rows_of_chip * len(devices), sequence_length=length)
    keys.model.remat = remat
    return compiled_costs(resolve(keys), devices)


def table():
    print(f"{'slice':12}{'batch':>6}{'length':>8}  {'remat':10}{'temporaries':>14}{'MaxText':>9}"
          f"{'total':>9}{'MaxText':>9}{'alive':>9}")  # fmt: skip
    ratios = []
    for topology, rows, length, remat, temporaries, total in ROWS:
        found = costs(topology, rows, length, remat)
        sizes, alive = found["bytes_per_device"], found["peak_bytes_per_device"] / 2**30
        ours = [sizes[kind] / 2**30 for kind in ("temporaries", "total")]
        theirs = [f"{x:9.2f}" if x else " " * 9 for x in (temporaries, total)]
        ratios += [ours[0] / temporaries] if temporaries else []
        name = "minimal" if remat == MINIMAL else remat
        row = f"{topology:12}{rows:6}{length:8}  {name:10}{ours[0]:14.2f}{theirs[0]}"
        print(f"{row}{ours[1]:9.2f}{theirs[1]}{alive:9.2f}", flush=True)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"temporaries, as a part of MaxText's, geometric mean: {mean:.2f}")


def scale(folder):
    """Memory and traffic of a device over the number of chips, as numbers and a picture."""
    from matplotlib.figure import Figure

    found = {topology: costs(topology) for topology in SLICES}
    (folder / "aot.json").write_text(json.dumps(found, indent=2))
    chips = [each["num_devices"] for each in found.values()]
    figure = Figure(figsize=(12, 4), layout="constrained")
    memory, traffic = figure.subplots(1, 2)
    for kind in ("arguments", "temporaries", "total"):
        sizes = [each["bytes_per_device"][kind] / 2**30 for each in found.values()]
        memory.loglog(chips, sizes, marker="o", label=kind, base=2)
    first = next(iter(found.values()))["bytes_per_device"]["arguments"] / 2**30
    memory.loglog(chips, [first * chips[0] / n for n in chips], "k:", label="1/n", base=2)
    for kind in sorted({kind for each in found.values() for kind in each["collectives"]}):
        sizes = [
            each["collectives"].get(kind, {"bytes": math.nan})["bytes"] for each in found.values()
        ]
        traffic.loglog(chips, [size / 2**30 for size in sizes], marker="o", label=kind, base=2)
    for panel, title in ((memory, "memory of a device, GiB"), (traffic, "moved in a step, GiB")):
        panel.set(title=title, xlabel="v5p chips", xticks=chips, xticklabels=chips)
        panel.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle("Llama 3 8B, FSDP over all chips, one sequence of 4096 tokens each")
    figure.savefig(folder / "aot.png", dpi=100)
    print(f"picture: {folder / 'aot.png'}")


if __name__ == "__main__":
    without_devices()
    table()
    build = Path("build")
    build.mkdir(exist_ok=True)
    if "--no-scale" not in sys.argv:
        scale(build)
