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
import sys
from pathlib import Path

from experiments import cli
from experiments.inspect import checkpoint_steps, sizes_of
from lm.cluster import launch as cluster
from lm.cluster.signals import interruptions
from lm.config import resolve
from lm.errors import require, require_in
from lm.paths import as_path, is_url

NEEDED = {"gke": ("accelerator", "image"), "tpu-vm": ("accelerator", "zone")}
# Flags that not all backends have.
TAKEN = {
    "local": ("processes",),
    "slurm": ("processes", "nodes", "chips", "slurm"),
    "gke": ("nodes", "chips", "accelerator", "slices", "image", "queue"),
    "tpu-vm": ("accelerator", "zone", "runtime", "spot"),
}
MEMBERS = ("coordinator", "num_processes", "process_id")


def add_flags(parser):
    """The flags that say where runs go, for sweep too."""
    add = parser.add_argument
    add("--backend", default="local", metavar="NAME", help=f"one of {', '.join(BACKENDS)} (local)")
    add("--processes", type=int, default=1, metavar="N", help="on each node (local, slurm)")
    add("--nodes", type=int, default=1, metavar="N", help="machines of a run (slurm, gke)")
    add("--chips", type=int, default=0, metavar="N", help="GPUs or TPU chips of a node")
    add(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="partition, time (minutes), ...",
    )
    add("--accelerator", metavar="KIND", help="nvidia-h100-80gb, tpu-v5p-slice:2x2x4, v5p-32")
    add("--slices", type=int, default=1, metavar="N", help="of that topology (gke)")
    add("--image", metavar="IMAGE", help="the container that the Dockerfile makes (gke)")
    add("--queue", default="", metavar="NAME", help="Kueue's local queue (gke)")
    add("--zone", metavar="ZONE", help="where TPU VMs are (tpu-vm)")
    add("--runtime", metavar="NAME", help="their software, or else that of the kind (tpu-vm)")
    add("--spot", action="store_true", help="such as may be taken away (tpu-vm)")
    add("--dry_run", action="store_true", help="print what would be submitted")


def launch(argv):
    arguments = flags.parse(argv)
    check(arguments)
    sizes_of(resolve(arguments.config, tokenizer_size=1), devices=None)  # before machines are made
    command = run_flags(arguments, arguments.workdir)
    text, start = BACKENDS[arguments.backend](arguments, arguments.workdir, command)
    return print(text) if arguments.dry_run else start()


def check(arguments):
    """Raise UserError for flags that the backend cannot do with."""
    backend, url = arguments.backend, is_url(arguments.workdir)
    require_in("--backend", backend, BACKENDS)
    for name, least in (("processes", 1), ("nodes", 1), ("slices", 1), ("chips", 0)):
        value = getattr(arguments, name)
        require(value >= least, f"--{name}={value} must be {least} or more.")
    for name in {name for names in TAKEN.values() for name in names}.difference(TAKEN[backend]):
        told = f"--backend={backend} takes no --{name}, which is for"
        takers = " and ".join(other for other, names in TAKEN.items() if name in names)
        value = getattr(arguments, name)
        is_given = value is True or value not in (None, "", 0, 1, [])
        require(not is_given, f"{told} {takers}; leave it out.")
    needed = NEEDED.get(backend, ())
    missing = [f"--{name}=..." for name in needed if not getattr(arguments, name)]
    require(not missing, f"--backend={backend} needs {' and '.join(missing)}.")
    told = f"--backend={backend} has machines that come and go; give --workdir=gs://BUCKET/FOLDER."
    require(url or not needed, told)


def run_flags(arguments, workdir, texts=()):
    """The flags of a run: its configuration, with what `texts` changes, and its workdir."""
    keys = {**arguments.keys, **dict(texts)}
    told = [f"--config.{key}={text}" for key, text in keys.items()]
    return [f"--config={arguments.spec}", *told, f"--workdir={workdir}"]


def here():
    """LOCAL on machines that share this one's files."""
    return [sys.executable, *cluster.LOCAL[1:]]


def saved_step(workdir):
    """The step of a run's last checkpoint, or 0; of one that is done train.num_steps."""
    return max(checkpoint_steps(as_path(workdir, "--workdir")), default=0)


# Of each backend: what a dry run prints, and a function that starts it.


def local(arguments, workdir, command):
    given = [f"--{name}={getattr(arguments, name)}" for name in MEMBERS if getattr(arguments, name)]
    told = "--processes starts all of a run, --process_id one of it; give one of the two."
    require(not given or arguments.processes == 1, told)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    train = [sys.executable, "-m", "experiments.train", *command, *given]
    commands = cluster.processes(train, arguments.processes, port)
    num_steps = arguments.config.train.num_steps

    def run():
        sys.exit(cluster.supervise(commands, lambda: saved_step(workdir), num_steps))

    return "\n".join(map(shlex.join, commands)), run


def slurm(arguments, workdir, *commands, at_once=None):
    """Of several commands, runs of a sweep in the workdir, an array, of which so many run at once;
    its start gives a cluster.Job of each.
    """
    name, sizes = cluster.dns_name(workdir), (arguments.nodes, arguments.processes, arguments.chips)
    folder = Path("runs", name).resolve() if is_url(workdir) else as_path(workdir).resolve()
    folder, parameters = folder / "slurm", cluster.slurm_parameters(name, *sizes, arguments.slurm)
    parameters |= {"array_parallelism": at_once} if at_once else {}
    commands = [[sys.executable, *cluster.LOCAL[1:], *command] for command in commands]

    def submit():
        jobs = cluster.slurm_submit(folder, parameters, commands)
        first = jobs[0].name
        print(f"submitted job {first}; its output: {folder}/{first}_0_log.out")
        return jobs

    several = len(commands) if commands[1:] else None
    lines = [cluster.slurm_script(folder, parameters, several), "# Each task of it:"]
    return "\n".join([*lines, *(f"# {shlex.join(command)}" for command in commands)]), submit


def gke(arguments, workdir, command):
    name, a = cluster.dns_name(workdir), arguments
    sizes = a.accelerator, a.chips, a.nodes, a.slices, a.queue
    text = cluster.jobset(name, [*cluster.LOCAL, *command], a.image, *sizes)
    return text, lambda: [cluster.gke_submit(name, text)]


def tpu_vm(arguments, workdir, command):
    command, name = [*cluster.LOCAL, *command], cluster.dns_name(workdir)
    where = arguments.accelerator, arguments.zone, arguments.runtime, arguments.spot
    script = cluster.tpu_vm(name, command, str(workdir).partition(":")[0], *where)

    def start():
        cluster.needs("gcloud", "tpu-vm")
        with interruptions() as signals:
            sys.exit(cluster.run([["bash", "-c", script]], signals)[0])

    return script, start


BACKENDS = {"local": local, "slurm": slurm, "gke": gke, "tpu-vm": tpu_vm}
flags = cli.Parser(__doc__)
flags.add_argument("--workdir", required=True, metavar="FOLDER", help="where the run is kept")
add_flags(flags)
for member in MEMBERS:
    flags.add_argument(f"--{member}", metavar="X", help="as train's (local)")

if __name__ == "__main__":
    cli.main(launch)
