"""What the compiler says of a run on hardware that is not there: memory and traffic of a step.

    python -m experiments.plan --config=configs/llama.py:llama3_8b --topology=v5p:2x2x4 --compile \\
        --config.mesh.fsdp=16 --config.data.batch_size=16

Topologies: v5p:2x2x4, v5e:4x4, v6e:8x8 (chips along each axis), h100:2x8 (nodes x GPUs of each).
Needs the extra `aot`, and no device. Exits with 1 if the step does not fit in a device's memory.
"""

import json

from experiments import cli
from experiments.inspect import readable_bytes, resolve_alone
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
    print(json.dumps(report, indent=2) if arguments.json else text(report))
    if report["fits"] is False:
        total, there = report["bytes_per_device"]["total"], report["memory_per_device"]
        raise RunError(
            f"the train step needs {readable_bytes(total)} and each of {arguments.topology} has "
            f"{readable_bytes(there)}. To make it fit, {REMEDIES}."
        )


def text(report):
    """A report to be read by people."""
    there = report["memory_per_device"]
    of = f" of {readable_bytes(there)}" if there else ""
    lines = [(f"{report['num_devices']} x {report['device']}: memory of each", "")]
    lines += [(f"  {kind}", readable_bytes(n)) for kind, n in report["bytes_per_device"].items()]
    lines[-1] = (lines[-1][0], lines[-1][1] + of)
    lines += [("alive at the worst moment", readable_bytes(report["peak_bytes_per_device"]))]
    lines += [("", ""), ("collectives of a step, of each device", "executions        bytes")]
    lines += [
        (f"  {kind}", f"{counts['executions']:>10}{readable_bytes(counts['bytes']):>13}")
        for kind, counts in report["collectives"].items()
    ]
    lines += [(f"assumed: {assumed}", "") for assumed in report["assumed"]]
    return "\n".join(f"{name:40}{value:>25}".rstrip() for name, value in lines)


if __name__ == "__main__":
    cli.main(plan)
