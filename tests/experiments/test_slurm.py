"""A real Slurm of one node on loopback, started and stopped here: `make slurm`, as root.

The node says that it has four processors, for jobs that share what there is. No accounting, no
cgroups: what a virtual machine has.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
ROOT = Path(__file__).resolve().parents[2]
HOST = socket.gethostname().partition(".")[0]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "runuser")
CONF = """
ClusterName=lm
SlurmctldHost={host}(127.0.0.1)
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not so within {seconds} s"
        time.sleep(0.2)


def ports():
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        return a.getsockname()[1], b.getsockname()[1]


def left(folder):
    """The processes that have this Slurm's configuration in their environment, but for ours."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in path.read_bytes() and path.parent.name != str(os.getpid()):
                found.append((path.parent.name, (path.parent / "cmdline").read_bytes()))
        except OSError:  # it has ended
            pass
    return found


@pytest.fixture(scope="module")
def slurm(tiny):
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid():
        pytest.skip(f"needs root and Slurm; missing: {', '.join(missing)}; see `make slurm`")
    folder = (
        Path("/tmp") / f"lm-slurm-{os.getpid()}"
    )  # a socket's path is short, and munge's to read
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True)
    shutil.chown(folder / "munge", "munge", "munge")
    (folder / "slurm.conf").write_text(CONF.format(host=HOST, folder=folder, ports=ports()))
    conf = {"SLURM_CONF": str(folder / "slurm.conf")}
    files = [
        f"--{name}={folder}/munge/{name[:-5]}" for name in ("pid-file", "log-file", "seed-file")
    ]
    files.append(f"--socket={folder}/munge/socket")
    servers = (
        ["runuser", "-u", "munge", "--", "munged", "--foreground", *files],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", HOST],
    )
    jobs = {
        **conf,
        "PYTHONPATH": str(ROOT),
        "LM_CACHE": str(tiny.cache),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": os.path.expanduser("~/.cache/lm/tests-processes"),
        "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
    }
    log = (folder / "log").open("wb")
    started = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in jobs.items():
            patch.setenv(name, value)
        for server in servers:
            started.append(subprocess.Popen(server, stdout=log, stderr=log))
            time.sleep(1)
        try:
            until(lambda: "idle" in output("sinfo", "--noheader", "--format=%T"), 60)
            yield folder
        finally:
            subprocess.run(["scancel", "--user=root"])
            try:
                until(lambda: not output("squeue", "--noheader"), 60)
            finally:
                for server in reversed(started):
                    server.terminate()
                    server.wait()
                log.close()
        until(lambda: not left(folder), 30)
    shutil.rmtree(folder)


def launch(name, workdir, tiny, keys, *flags):
    command = [sys.executable, "-m", f"experiments.{name}", "--backend=slurm", *flags]
    arguments = tiny.arguments(workdir, {"evaluate.every_steps": 0, **keys})
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def steps(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"train/loss") if path.exists() else 0


def restarts(job):
    return int(output("scontrol", "show", "job", job).partition("Restarts=")[2].split()[0])


def begin(job, *changes):
    """Have a job that was queued again begin now; Slurm would wait for two minutes."""
    until(lambda: "Reason=BeginTime" in output("scontrol", "show", "job", job), 120)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now", *changes], check=True)


def test_a_job_of_two_tasks_resumes_to_the_bit(slurm, tiny, tmp_path, exact):
    """One is queued again in the middle, another is not; their losses and batches are equal."""
    keys = {"train.num_steps": 90, "optim.decay_steps": 90, "checkpoint.every_steps": 0}
    whole, requeued = tmp_path / "whole", tmp_path / "requeued"
    for workdir in (whole, requeued):
        out = launch("launch", workdir, tiny, keys, "--processes=2")
        job = out.split()[2].rstrip(";")
        if workdir == requeued:
            until(lambda: steps(requeued) >= 20, 300)
            subprocess.run(["scontrol", "requeue", job], check=True)
            begin(job)
        until(lambda: not output("squeue", "--noheader"), 240)
        assert restarts(job) == (workdir == requeued)
        assert steps(workdir) == 90
    starts = json.loads((requeued / "environment.json").read_text())
    assert [start["processes"] for start in starts] == [2, 2]
    assert "ExitCode=0:0" in output("scontrol", "show", "job", job)
    assert exact(requeued) == exact(whole)
    log = (requeued / "slurm" / f"{job}_0_log.out").read_text()
    assert "saved at step" in log and "resumed from" in log


def test_a_job_at_its_time_limit_saves_and_is_queued_again(slurm, tiny, tmp_path):
    keys = {"train.num_steps": 10**6, "checkpoint.every_steps": 0}
    # The signal may come a minute before its time, and must not come before the first step.
    limit = ("--slurm=time=3", "--slurm=signal_delay_s=30", "--processes=2")
    job = launch("launch", tmp_path / "a", tiny, keys, *limit).split()[2].rstrip(";")
    until(lambda: restarts(job) == 1, 300)
    begin(job, "TimeLimit=10")  # else it may come to its end again before it has compiled
    (saved,) = (tmp_path / "a" / "checkpoints").iterdir()
    until(lambda: steps(tmp_path / "a") > int(saved.name), 300)
    subprocess.run(["scancel", job], check=True)
    until(lambda: not output("squeue", "--noheader"), 60)


def test_a_job_s_mistake_is_its_exit_code(slurm, tiny, tmp_path):
    out = launch("launch", tmp_path / "a", tiny, {"data.path": "nowhere"})
    job = out.split()[2].rstrip(";")
    until(lambda: not output("squeue", "--noheader"), 60)
    told = output("scontrol", "show", "job", job)
    assert "JobState=FAILED" in told and "ExitCode=2:0" in told
    assert "nowhere" in (tmp_path / "a" / "slurm" / f"{job}_0_log.err").read_text()


def test_a_sweep_of_six_runs_is_an_array(slurm, tiny, tmp_path):
    """Killed as soon as they are submitted: the next one finds them again and submits nothing."""
    file, folder = tmp_path / "mine.py", tmp_path / "runs"
    file.write_text(
        "from experiments.sweeps import product, seeds\n"
        "def sweep():\n    return seeds(2, product({'model.d_model': [8, 16, 32]}))\n"
    )
    command = [sys.executable, "-m", "experiments.sweep", "--backend=slurm", "--parallel=2"]
    keys = {"model.d_model": None, "evaluate.every_steps": 8}
    command += [f"--sweep={file}", *tiny.arguments(folder, keys)]
    ledger = folder / "ledger.jsonl"
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    until(lambda: ledger.exists() and ledger.read_text().count("started") == 6, 60)
    first.kill()
    first.wait()
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.count(": done") == 6 and "started" not in out
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert {row["status"] for row in rows} == {"done"}
    (array,) = {row["job"].partition("_")[0] for row in rows}
    assert sorted(row["job"] for row in rows) == [f"{array}_{number}" for number in range(6)]
    for row in rows:
        assert len(json.loads((Path(row["workdir"]) / "environment.json").read_text())) == 1
        assert row["steps"] == 24 and row["eval_loss"] > 0
