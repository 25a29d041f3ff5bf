"""The launcher's flags, README's commands as dry runs, and a real run that is killed."""

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import cli, launch, sweep
from lm.cluster import launch as cluster

ROOT = Path(__file__).resolve().parents[2]
DEMO = "--config=configs/demo.py"
# As of test_processes.py.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": os.path.expanduser("~/.cache/lm/tests-processes"),
    "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
}
COMMANDS = {"launch": launch.launch, "sweep": sweep.sweep}


def command(name, *argv):
    """(exit code, stdout, stderr), from the repository."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        return cli._status(COMMANDS[name], list(argv)), out.getvalue(), err.getvalue()


def commands_of_readme():
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    found = re.findall(r"^python -m experiments\.(launch|sweep) (.*)$", text, re.MULTILINE)
    return [(name, shlex.split(flags)) for name, flags in found]


def test_readme_shows_every_backend():
    shown = {flag for _, flags in commands_of_readme() for flag in flags}
    assert {f"--backend={name}" for name in launch.BACKENDS} <= shown


@pytest.mark.parametrize(("name", "argv"), commands_of_readme(), ids=str)
def test_readme_s_commands_as_dry_runs(name, argv, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # without any scheduler
    monkeypatch.setattr(launch, "is_url", lambda path: str(path).startswith("gs://"))
    monkeypatch.setattr(sweep, "as_path", lambda path, *key: Path(tmp_path / path))
    status, out, err = command(name, *argv, "--dry_run")
    assert (status, err) == (0, "") and out
    if "--backend=gke" in argv:
        assert json.loads(out)["kind"] == "JobSet"
    if name == "launch":
        assert argv[-1] in out  # the run's last flag
    assert not list(tmp_path.iterdir())


WRONG = [
    (["--backend=slrum", DEMO, "--workdir=a"], "Did you mean 'slurm'"),
    (["--backend=gke", DEMO, "--workdir=gs://b/a"], "needs --accelerator=... and --image=..."),
    (["--backend=tpu-vm", DEMO, "--workdir=a", "--accelerator=v5p-8", "--zone=z"], "gs://BUCKET"),
    (["--nodes=2", DEMO, "--workdir=a"], "takes no --nodes, which is for slurm and gke"),
    (["--backend=slurm", "--spot", DEMO, "--workdir=a"], "takes no --spot, which is for tpu-vm"),
    (
        ["--backend=tpu-vm", "--accelerator=v99-8", "--zone=z", DEMO, "--workdir=gs://b/a"],
        "v5litepod, v5p, v6e",
    ),
    (["--processes=0", DEMO, "--workdir=a"], "--processes=0 must be 1 or more"),
    (["--processes=2", "--process_id=0", DEMO, "--workdir=a"], "give one of the two"),
    ([DEMO, "--workdir=a", "--config.model.num_heads=7"], "does not divide"),
    ([DEMO, "--workdir=a", "--config.mesh.fsdp=-1"], "only one axis can take what is left"),
    (["--backend=slurm", DEMO, "--workdir=a"], "needs sbatch, which is not here"),
    (
        [
            *("--backend=gke", "--accelerator=nvidia-l4", "--chips=1", "--image=i", DEMO),
            "--workdir=gs://b/a",
        ],
        "needs kubectl, which is not here",
    ),
    (
        ["--backend=tpu-vm", "--accelerator=v5p-8", "--zone=z", DEMO, "--workdir=gs://b/a"],
        "needs gcloud, which is not here",
    ),
]


@pytest.mark.parametrize(("argv", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_mistake_is_one_line_and_status_2(argv, said, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, out, err = command("launch", *argv)
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", err) and said in err


def test_a_scheduler_that_does_not_take_it(monkeypatch, tmp_path):
    (tmp_path / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition: x' >&2\nexit 1\n"
    )
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    argv = ["--backend=slurm", "--slurm=partition=x", DEMO, f"--workdir={tmp_path / 'a'}"]
    status, _, err = command("launch", *argv)
    assert status == 2 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: sbatch has not taken the job: invalid partition")


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    status, _, err = command("launch", "--backend=slurm", DEMO, "--workdir=a", "--dry_run")
    assert status == 2 and "needs submitit: pip install -e '.[launch]'" in err


@pytest.mark.parametrize(
    ("fails", "asked", "code"),
    [
        ("", "create scp ssh delete", 0),
        ("ssh", "create scp ssh delete", 3),
        ("create", "create", 3),
    ],
)
def test_tpu_vms_are_deleted_by_who_made_them(fails, asked, code, monkeypatch, tmp_path):
    """gcloud is a stand-in here: it notes what it is asked, and fails at one thing."""
    program = tmp_path / "gcloud"
    program.write_text(f'#!/bin/sh\necho $4 >> {tmp_path}/asked\n[ "$4" != "{fails}" ] || exit 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    argv = ["--backend=tpu-vm", "--accelerator=v5p-8", "--zone=z", DEMO, "--workdir=gs://b/a"]
    with pytest.raises(SystemExit) as ended:
        command("launch", *argv)
    assert ended.value.code == code
    Path("/tmp", f"{cluster.dns_name('gs://b/a')}.tar.gz").unlink()
    assert (tmp_path / "asked").read_text().split() == asked.split()


def test_tpu_vms_are_deleted_after_a_signal(monkeypatch, tmp_path):
    """As a sweep ends a run; gcloud's ssh waits here until it is told of that, or longer."""
    program, asked = tmp_path / "gcloud", tmp_path / "asked"
    program.write_text(f'#!/bin/sh\necho $4 >> {asked}\n[ "$4" != ssh ] || exec sleep 3\n')
    program.chmod(0o755)
    argv = ["--backend=tpu-vm", "--accelerator=v5p-8", "--zone=z", DEMO, "--workdir=gs://b/s"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.launch", *argv],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    while not asked.exists() or "ssh" not in asked.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) != 0
    Path("/tmp", f"{cluster.dns_name('gs://b/s')}.tar.gz").unlink()
    assert asked.read_text().split() == ["create", "scp", "ssh", "delete"]


@pytest.mark.kills
def test_a_run_ends_with_its_launcher(tiny, tmp_path):
    """Killed, it can tell nobody; the run saves, as after any SIGTERM, and goes on when asked."""
    keys = {"train.num_steps": 10**6, "checkpoint.every_steps": 0, "evaluate.every_steps": 0}
    argv = [sys.executable, "-m", "experiments.launch", *tiny.arguments(tmp_path / "a", keys)]
    environment = {**os.environ, "LM_CACHE": str(tiny.cache)}
    process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "a" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None
        time.sleep(0.02)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    end = time.monotonic() + 120
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert len([*(tmp_path / "a" / "checkpoints").iterdir()]) == 1


def test_two_processes_of_which_one_is_killed(tiny, finished, tmp_path, exact):
    """The launcher starts both again: the run ends as one that nothing befell."""
    workdir = tmp_path / "run"
    arguments = tiny.arguments(workdir, {"cluster.timeout_seconds": 20})
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.launch", "--processes=2", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "LM_CACHE": str(tiny.cache),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            **CACHE,
        },
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
    )
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 9):
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "process 1" in err and "launch: ended with [75, -9]; again from step" in err
    assert len(json.loads((workdir / "environment.json").read_text())) == 2
    ours, theirs = exact(workdir), exact(finished)
    assert ours.keys() == theirs.keys()
    fingerprints = [key for key in ours if key[1] == "data/fingerprint"]
    assert [ours[key] for key in fingerprints] == [theirs[key] for key in fingerprints]
    losses = [(float.fromhex(ours[k]), float.fromhex(theirs[k])) for k in ours if "loss" in k[1]]
    assert all(abs(mine - its) < 1e-5 * its for mine, its in losses)
