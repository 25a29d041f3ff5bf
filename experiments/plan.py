"""What the compiler says of a run on hardware that is not there: memory and traffic of a step.

    python -m experiments.plan --config=configs/llama.py:llama3_8b --topology=v5p:2x2x4 --compile \\
        --config.mesh.fsdp=16 --config.data.batch_size=16

Topologies: v5p:2x2x4, v5e:4x4, v6e:8x8 (chips along each axis), h100:2x8 (nodes x GPUs of each).
Needs the extra `aot`, and no device. Exits with 1 if the step does not fit in a device's memory.
"""

import json

from experiments import cli
from experiments.inspect import resolve_alone
from lm.errors import RunError, require
from lm.plan.topology import topology_devices, without_devices

flags = cli.Parser(__doc__)
flags.add_argument("--topology", required=True, metavar="KIND:SIZES", help="the devices")
flags.add_argument("--compile", action="store_true", help="compile the train step for them")
flags.add_argument("--json", action="store_true", help="print JSON")


def plan(argv):
    arguments = flags.parse(argv)
    require(arguments.compile, "without --compile there is nothing to plan yet; add it.")
    without_devices()
    devices = topology_devices(arguments.topology)
    from lm.plan.compile import REMEDIES, compiled_costs

    config, assumed = resolve_alone(arguments.config)
    report = {"topology": arguments.topology, **compiled_costs(config, devices)}
    report |= {"assumed": assumed}
    print(json.dumps(report, indent=2) if arguments.json else cli.text_of(report))
    if report["fits"] is False:
        sizes = report["bytes_per_device"]["total"], report["memory_per_device"]
        needs, there = map(cli.readable_bytes, sizes)
        has = f"and each of {arguments.topology} has {there}. To make it fit, {REMEDIES}."
        raise RunError(f"the train step needs {needs} {has}")


if __name__ == "__main__":
    cli.main(plan)
