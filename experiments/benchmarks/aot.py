"""The train step of Llama 3 8B compiled for hardware that is not here, beside MaxText's own.

    make aot        # minutes for each row

float32 weights, gradients and moments, bfloat16 products, AdamW, scanned layers, pure FSDP, nothing
offloaded. GiB of a device; a row is a slice, the sequences of a chip, their length, and what is
recomputed, with MaxText's temporaries and total where they are known.
"""

import math

from configs.llama import llama3_8b
from lm.config import resolve
from lm.plan.topology import topology_devices, without_devices

MINIMAL = "query,key,value,attention,gate,up"
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


def table():
    from lm.plan.compile import compiled_costs

    print(f"{'slice':12}{'batch':>6}{'length':>8}  {'remat':10}{'temporaries':>14}{'MaxText':>9}"
          f"{'total':>9}{'MaxText':>9}")  # fmt: skip
    ratios = []
    for topology, rows, length, remat, temporaries, total in ROWS:
        devices, keys = topology_devices(topology), llama3_8b()
        keys.mesh.update(data=1, fsdp=-1)
        keys.data.update(batch_size=rows * len(devices), sequence_length=length)
        keys.model.remat = remat
        sizes = compiled_costs(resolve(keys), devices)["bytes_per_device"]
        ours = [sizes[kind] / 2**30 for kind in ("temporaries", "total")]
        theirs = [f"{x:9.2f}" if x else " " * 9 for x in (temporaries, total)]
        ratios += [ours[0] / temporaries] if temporaries else []
        name = "minimal" if remat == MINIMAL else remat
        row = f"{topology:12}{rows:6}{length:8}  {name:10}{ours[0]:14.2f}{theirs[0]}"
        print(f"{row}{ours[1]:9.2f}{theirs[1]}", flush=True)
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"temporaries, as a part of MaxText's, geometric mean: {mean:.2f}")


if __name__ == "__main__":
    without_devices()
    table()
