"""Start a run on this machine, on Slurm, on GKE or on TPU VMs; the same command again resumes it.

    python -m experiments.launch --backend=local --processes=2 --config=FILE:PRESET --workdir=FOLDER
    python -m experiments.launch --backend=slurm --nodes=4 --chips=8 --slurm=partition=P ...
    python -m experiments.launch --backend=gke --accelerator=tpu-v5p-slice:2x2x4 --image=IMAGE ...
    python -m experiments.launch --backend=tpu-vm --accelerator=v5p-32 --zone=ZONE ...

--dry_run prints what would be submitted. local and tpu-vm run to the end, and give the run's exit
code, or gcloud's; slurm and gke submit it.
"""

import shlex
import socket
import subprocess
import sys
from pathlib import Path

from experiments import cli
from experiments.inspect import checkpoint_steps
from lm.cluster import launch as cluster
from lm.config import resolve
from lm.errors import require, require_in
from lm.paths import as_path, is_url

NEEDED = {
    "local": (),
    "slurm": (),
    "gke": ("accelerator", "image"),
    "tpu-vm": ("accelerator", "zone"),
}
MEMBERS = ("coordinator", "num_processes", "process_id")


def add_flags(parser):
    """The flags that say where runs go, for sweep too."""
    add = parser.add_argument
    add("--backend", default="local", metavar="NAME", help=f"one of {', '.join(NEEDED)} (local)")
    add("--processes", type=int, default=1, metavar="N", help="on each node (local, slurm)")
    add("--nodes", type=int, default=1, metavar="N", help="machines of a run (slurm, gke)")
    add("--chips", type=int, default=0, metavar="N", help="GPUs or TPU chips of a node")
    add("--slurm", action="append", default=[], metavar="KEY=VALUE", help="partition, time, ...")
    add("--accelerator", metavar="KIND", help="nvidia-h100-80gb, tpu-v5p-slice:2x2x4, v5p-32")
    add("--slices", type=int, default=1, metavar="N", help="of that topology (gke)")
    add("--image", metavar="IMAGE", help="the container that the Dockerfile makes (gke)")
    add("--queue", default="", metavar="NAME", help="Kueue's local queue (gke)")
    add("--queue_chips", type=int, metavar="N", help="make that queue, of so many chips (gke)")
    add("--zone", metavar="ZONE", help="where TPU VMs are (tpu-vm)")
    add("--runtime", default="v2-alpha-tpuv5", metavar="NAME", help="their software (tpu-vm)")
    add("--spot", action="store_true", help="such as may be taken away (tpu-vm)")
    add("--dry_run", action="store_true", help="print what would be submitted")


flags = cli.Parser(__doc__)
flags.add_argument("--workdir", required=True, metavar="FOLDER", help="where the run is kept")
add_flags(flags)
for member in MEMBERS:
    flags.add_argument(f"--{member}", metavar="X", help="as train's (local)")


def launch(argv):
    arguments = flags.parse(argv)
    check(arguments)
    num_steps = resolve(arguments.config, tokenizer_size=1).train.num_steps
    workdir, backend, dry_run = arguments.workdir, arguments.backend, arguments.dry_run
    command = run_flags(arguments, workdir)
    if backend == "slurm":
        folder, parameters = slurm_job(arguments, workdir)
        if dry_run:
            script = cluster.slurm_script(folder, parameters)
            return print(script, f"# Each task of it: {shlex.join([*here(), *command])}", sep="\n")
        (job,) = cluster.slurm_submit(folder, parameters, [[*here(), *command]])
        return print(f"submitted job {job.name}; its output: {folder}/{job.name}_0_log.out")
    if backend == "gke":
        name, text = gke_job(arguments, workdir, command)
        return print(text) if dry_run else cluster.gke_submit(name, text)
    if backend == "tpu-vm":
        where = arguments.accelerator, arguments.zone, arguments.runtime, arguments.spot
        command = [*cluster.LOCAL, *command]
        made, run, last = cluster.tpu_vm(cluster.dns_name(workdir), command, *where)
        commands = [*made, *run, last]
    else:
        commands = local(arguments, command)
    if dry_run:
        return print(*map(shlex.join, commands), sep="\n")
    if backend == "tpu-vm":
        return on_tpu_vm(made, run, last)
    return sys.exit(cluster.supervise(commands, lambda: saved_step(workdir), num_steps))


def check(arguments):
    """Raise UserError for flags that the backend cannot do with."""
    backend, url = arguments.backend, is_url(arguments.workdir)
    require_in("--backend", backend, NEEDED)
    for name, least in (("processes", 1), ("nodes", 1), ("slices", 1), ("chips", 0)):
        value = getattr(arguments, name)
        require(value >= least, f"--{name}={value} must be {least} or more.")
    told = "--backend=local is this one machine; start it on each with --coordinator, or see slurm."
    require(backend != "local" or arguments.nodes == 1, told)
    missing = [f"--{name}=..." for name in NEEDED[backend] if not getattr(arguments, name)]
    require(not missing, f"--backend={backend} needs {' and '.join(missing)}.")
    told = f"--backend={backend} has machines that come and go; give --workdir=gs://BUCKET/FOLDER."
    require(url or not NEEDED[backend], told)
    told = "--queue_chips makes a queue, and needs its name: --queue=NAME."
    require(arguments.queue or not arguments.queue_chips, told)


def run_flags(arguments, workdir, texts=()):
    """The flags of a run: its configuration, with what `texts` changes, and its workdir."""
    keys = {**arguments.keys, **dict(texts)}
    told = [f"--config.{key}={text}" for key, text in keys.items()]
    return [f"--config={arguments.spec}", *told, f"--workdir={workdir}"]


def here():
    """LOCAL on machines that share this one's files."""
    return [sys.executable, *cluster.LOCAL[1:]]


def local(arguments, command):
    """The commands of a run's processes on this machine."""
    given = [f"--{name}={getattr(arguments, name)}" for name in MEMBERS if getattr(arguments, name)]
    told = "--processes starts all of a run, --process_id one of it; give one of the two."
    require(not given or arguments.processes == 1, told)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    train = [sys.executable, "-m", "experiments.train", *command, *given]
    return cluster.processes(train, arguments.processes, port)


def saved_step(workdir):
    """The step of a run's last checkpoint, or 0; of one that is done train.num_steps."""
    return max(checkpoint_steps(as_path(workdir, "--workdir")), default=0)


def slurm_job(arguments, workdir):
    """(folder of submitit's files, its parameters)"""
    name, sizes = cluster.dns_name(workdir), (arguments.nodes, arguments.processes, arguments.chips)
    folder = Path("runs", name) if is_url(workdir) else as_path(workdir)
    return folder.resolve() / "slurm", cluster.slurm_parameters(name, *sizes, arguments.slurm)


def gke_job(arguments, workdir, command):
    """(name of the JobSet, the manifest as text)"""
    name, a = cluster.dns_name(workdir), arguments
    jobs = cluster.jobset(
        *(name, [*cluster.LOCAL, *command], a.image),
        *(a.accelerator, a.chips, a.nodes, a.slices, a.queue),
    )
    queue = cluster.kueue(a.queue, jobs, a.queue_chips) if a.queue_chips else []
    return name, cluster.manifest([*queue, jobs])


def on_tpu_vm(made, run, last):
    """Exits with the code of what fails; VMs that another command has made are left alone."""
    cluster.needs("gcloud", "tpu-vm")
    call_all(made)
    try:
        call_all(run)
    finally:
        subprocess.run(last)


def call_all(commands):
    for command in commands:
        if code := subprocess.run(command).returncode:
            sys.exit(code)


if __name__ == "__main__":
    cli.main(launch)
