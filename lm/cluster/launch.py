"""A run's command on machines: as processes here, a Slurm job, a JobSet, commands for TPU VMs.

Every machine runs LOCAL, which `supervise`s: the command is started again as long as it asks for
that, and 0 says that the run is done, as no scheduler would go on with one that only saved.
"""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zlib
from ctypes import CDLL

from lm.cluster.processes import RESTART
from lm.cluster.signals import interruptions
from lm.errors import UserError, did_you_mean, optional, require, require_in

LOCAL = ["python", "-m", "experiments.launch", "--backend=local"]
GRACE = 120  # seconds, from the signal that asks a run to save to the one that kills it
TRIES = 3  # starts in a row without a new checkpoint
JOBSETS = 100  # starts of a JobSet, of which a machine was lost
POLL = 0.1  # seconds
# The software of TPU VMs, of each kind.
RUNTIMES = {**dict.fromkeys(("v2", "v3", "v4"), "tpu-ubuntu2204-base")}
RUNTIMES |= {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}


def needs(program, backend):
    told = f"--backend={backend} needs {program}, which is not here; run this where that is, or "
    require(shutil.which(program), f"{told}see what it would submit with --dry_run.")


def processes(command, count, port):
    """The commands of a run of `count` processes on this machine."""
    if count == 1:
        return [command]
    found = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
    return [[*command, *found, f"--process_id={index}"] for index in range(count)]


def supervise(commands, progress, num_steps):
    """Run the commands, of one run, together, again after RESTART or a kill; gives the exit code.

    progress(): the last step that is saved. A run that saved before num_steps, as a signal to it or
    to another of its processes asked, gives RESTART too.
    """
    tries, saved = 0, progress()
    with interruptions() as signals:
        while True:
            codes = run(commands, signals)
            if wrong := [code for code in codes if code > 0 and code != RESTART]:
                return wrong[0]
            before, saved = saved, progress()
            tries = 1 if saved > before else tries + 1
            if not any(codes):
                return 0 if saved >= num_steps else RESTART
            if signals.requested or tries >= TRIES:
                return RESTART
            print(f"launch: ended with {codes}; again from step {saved}", file=sys.stderr)


def run(commands, signals):
    """The exit codes of commands, run together, which are told of a signal to this process."""
    started = [subprocess.Popen(command, preexec_fn=_end_with_parent) for command in commands]
    told = False
    while None in (codes := [process.poll() for process in started]):
        if signals.requested and not told:
            told = True
            for process in started:
                process.terminate()
        time.sleep(POLL)
    return codes


def _end_with_parent():
    """Have the system send SIGTERM to this process when the one that started it is killed."""
    if sys.platform == "linux":
        CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Job:
    """A job of a cluster as subprocess.Popen is a process; codes: {state: exit code}."""

    def __init__(self, name, state, codes, cancel):
        self.name, self.state, self.codes, self.cancel = name, state, codes, cancel

    def poll(self):
        told = subprocess.run(self.state, capture_output=True, text=True)
        known = not told.returncode or "Invalid job id" in told.stderr  # else none has answered
        return self.codes.get(told.stdout.strip()) if known else None

    def terminate(self):
        subprocess.run(self.cancel, stdout=subprocess.DEVNULL)


def slurm_job(name):
    state = ["squeue", "--noheader", "--format=%T", f"--jobs={name}"]
    return Job(name, state, {"": 0}, ["scancel", name])


def slurm_parameters(name, nodes, per_node, chips, options):
    """What submitit makes a batch script of; options: ["partition=a", "time=MINUTES"], as there."""
    slurm = optional("submitit", "--backend=slurm", "launch").slurm.slurm
    parameters = {"job_name": name, "nodes": nodes, "ntasks_per_node": per_node}
    parameters |= {"time": 24 * 60, "signal_delay_s": GRACE}
    parameters |= {"additional_parameters": {"requeue": True}}
    parameters |= {"gpus_per_node": chips} if chips else {}
    known = sorted(slurm.SlurmExecutor._valid_parameters())
    for option in options:
        key, equals, text = option.partition("=")
        told = f"--slurm={option}: there is no {key!r}.{did_you_mean(key, known)}"
        require(key in known, told)
        require(equals, f"--slurm={option} has no value; give --slurm={key}=VALUE.")
        parameters[key] = int(text) if text.isdigit() else text
    return parameters


def slurm_script(folder, parameters, count=None):
    """What sbatch is given; count: of the runs of an array, None of a job."""
    slurm = optional("submitit", "--backend=slurm", "launch").slurm.slurm
    task = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return slurm._make_sbatch_string(command=task, folder=folder, map_count=count, **parameters)


def slurm_submit(folder, parameters, commands):
    """Submit a job, or of several commands an array; gives a Job of each."""
    needs("sbatch", "slurm")
    submitit = optional("submitit", "--backend=slurm", "launch")
    executor = submitit.SlurmExecutor(folder, max_num_timeout=10**6)
    executor.update_parameters(**parameters)
    try:
        with executor.batch():
            jobs = [executor.submit(SlurmTask(command)) for command in commands]
    except submitit.core.utils.FailedJobError as error:
        why = str(error).strip().splitlines()[-1].removeprefix("sbatch: ").removeprefix("error: ")
        raise UserError(f"sbatch has not taken the job: {why}; see `sinfo` and --slurm.") from None
    return [slurm_job(job.job_id) for job in jobs]


class SlurmTask:
    """What each task of a Slurm job does; preempted, or out of time, the job is queued again."""

    def __init__(self, command):
        self.command = command

    def __call__(self):
        # All of a job get the signal that comes before the end, which is for submitit.
        deaf = lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # noqa: E731
        self.process = subprocess.Popen(self.command, preexec_fn=deaf)
        while self.process.poll() is None:
            time.sleep(POLL)
        if code := self.process.returncode:
            sys.exit(code)  # the job's exit code too, which an exception's would not be

    def checkpoint(self):
        """submitit's signal handler calls it, in task 0, before it queues the job again."""
        from submitit.helpers import DelayedSubmission

        self.process.terminate()
        # `wait` may be what the signal interrupted, and its lock is taken.
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(SlurmTask(self.command))


def dns_name(workdir):
    """A name for a cluster, from a workdir: readable, its own, short enough for pods."""
    text = re.sub(r"[^a-z0-9]+", "-", str(workdir).rstrip("/").rpartition("/")[2].lower())
    return f"lm-{text.strip('-')[:24].strip('-')}-{zlib.crc32(str(workdir).encode()):08x}"


def jobset(name, command, image, accelerator, chips, nodes, slices, queue):
    """A run on GKE as a JobSet (v1alpha2), as JSON, which is YAML too. With a queue Kueue suspends
    it as it is made, and admits it as a whole.

    accelerator: a GPU, "nvidia-h100-80gb", of which `nodes` have `chips` each; or a TPU and its
    topology, "tpu-v5p-slice:2x2x4", of which there are `slices`, `chips` (4) in a node.
    """
    kind, _, topology = accelerator.partition(":")
    container = {"name": "lm", "image": image}
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": GRACE}
    if kind.startswith("tpu"):
        shape = re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology)
        require(shape, f"--accelerator={accelerator} must have a topology, as {kind}:2x2x4.")
        total = math.prod(map(int, topology.split("x")))
        chips, resource = chips or min(total, 4), "google.com/tpu"
        require(total % chips == 0, f"--chips={chips} does not divide the {total} of {topology}.")
        nodes, selector = total // chips, {"tpu-accelerator": kind, "tpu-topology": topology}
    else:
        require(chips, f"--accelerator={accelerator} needs --chips=N, the GPUs of each node.")
        require(slices == 1, f"--slices={slices} is for TPUs; give --nodes=N.")
        resource, selector = "nvidia.com/gpu", {"accelerator": kind}
        container["volumeMounts"] = [{"name": "memory", "mountPath": "/dev/shm"}]  # for NCCL
        pod["volumes"] = [{"name": "memory", "emptyDir": {"medium": "Memory"}}]
        if nodes > 1:  # of TPUs each is told who it is
            found = [f"--coordinator={name}-lm-0-0.{name}:8476", f"--num_processes={nodes}"]
            command = [*command, *found, "--process_id=$(JOB_COMPLETION_INDEX)"]
    container |= {"command": command, "resources": {"limits": {resource: chips}}}
    pod["nodeSelector"] = {f"cloud.google.com/gke-{key}": x for key, x in selector.items()}
    pod["containers"] = [container]
    # A mistake (2), or a run that cannot go on (1), ends it; whatever else happens starts it again.
    codes = {"containerName": "lm", "operator": "In", "values": [1, 2]}
    job = {"completionMode": "Indexed", "parallelism": nodes, "completions": nodes}
    job |= {"backoffLimit": 0, "template": {"spec": pod}}
    job["podFailurePolicy"] = {"rules": [{"action": "FailJob", "onExitCodes": codes}]}
    fails = {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    metadata = {"name": name}
    if queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": queue}
    if slices > 1:  # each has its node pool
        exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {exclusive: "cloud.google.com/gke-nodepool"}
    spec = {
        "failurePolicy": {"maxRestarts": JOBSETS, "rules": [fails]},
        "replicatedJobs": [{"name": "lm", "replicas": slices, "template": {"spec": job}}],
    }
    head = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet"}
    return json.dumps({**head, "metadata": metadata, "spec": spec}, indent=2)


def gke_submit(name, text):
    """Apply a manifest; a JobSet that has ended begins anew, one that runs goes on. Gives a Job."""
    needs("kubectl", "gke")
    state = ["kubectl", "get", "jobset", name, "--output=jsonpath={.status.terminalState}"]
    cancel = ["kubectl", "delete", "jobset", name]
    job = Job(name, state, {"Completed": 0, "Failed": 1}, cancel)
    if job.poll() is not None:
        job.terminate()
    ended = subprocess.run(["kubectl", "apply", "--filename=-"], input=text, text=True)
    require(ended.returncode == 0, "kubectl has not taken the manifest; its lines say why.")
    return job


def tpu_vm(name, command, store, accelerator, zone, runtime, spot):
    """A script that makes TPU VMs, as "v5p-32", brings what is committed there and runs it. It
    deletes what it made, however it ends, and exits with the code of what fails.

    store: "gs" or "s3", where the workdir is. runtime: None for that of the accelerator.
    """
    require_in("the kind of --accelerator", accelerator.partition("-")[0], RUNTIMES)
    runtime = runtime or RUNTIMES[accelerator.partition("-")[0]]
    tool = "gcloud compute tpus tpu-vm"
    archive, where = f"/tmp/{name}.tar.gz", f"{name} --zone={zone}"
    kind = f"--accelerator-type={accelerator} --version={runtime}{' --spot' if spot else ''}"
    run = [
        "sudo apt-get update -qq && sudo apt-get install -qq -y python3.11-venv",
        f"mkdir -p lm && tar -xzf {name}.tar.gz -C lm && cd lm && python3.11 -m venv .venv",
        f". .venv/bin/activate && pip install -q -e '.[tpu,{store}]' -c constraints.txt",
        shlex.join(command),
    ]
    return f"""\
set -e
git diff --quiet HEAD || echo 'launch: what is not committed stays here' >&2
git archive --format=tar.gz --output={archive} HEAD
{tool} create {where} {kind}
trap '{tool} delete {where} --quiet' EXIT
{tool} scp {archive} {name}: --zone={zone} --worker=all
{tool} ssh {where} --worker=all --command={shlex.quote(" && ".join(run))}"""
