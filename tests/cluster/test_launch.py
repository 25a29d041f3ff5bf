"""Texts and commands, held against the schedulers' own formats; processes, against what they do."""

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from lm.cluster import launch
from lm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ["python", "-m", "experiments.train", "--config=a.py:b", "--workdir=gs://b/my run"]


def test_processes_are_one_command_or_find_one_another():
    assert launch.processes(["x"], 1, 7) == [["x"]]
    first, second = launch.processes(["x"], 2, 7)
    assert first == ["x", "--coordinator=127.0.0.1:7", "--num_processes=2", "--process_id=0"]
    assert second[-1] == "--process_id=1"


def supervised(tmp_path, code, count=1, steps=10):
    """The exit code, and how often the command was started. Python `code` has `n`, of the start,
    and save(step)."""
    start = tmp_path / "starts"
    head = f"""
import os, signal, sys, time
def save(step): open({str(tmp_path / "saved")!r}, "w").write(str(step))
with open({str(start)!r}, "a") as file: file.write("x")
n = os.path.getsize({str(start)!r})
"""
    saved = tmp_path / "saved"

    def progress():
        return int(saved.read_text()) if saved.exists() else 0

    status = launch.supervise([[sys.executable, "-c", head + code]] * count, progress, steps)
    return status, len(start.read_text())


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("save(10)", (0, 1)),
        ("save(5)", (75, 1)),  # 0, as after a signal to another process, but not done
        ("save(n); sys.exit(75 if n < 6 else 0) if n < 6 else save(10)", (0, 6)),
        ("sys.exit(75)", (75, 3)),  # no step is saved in three starts
        ("sys.exit(2)", (2, 1)),
        ("sys.exit(1)", (1, 1)),
        ("os.kill(os.getpid(), signal.SIGKILL) if n < 2 else save(10)", (0, 2)),
    ],
)
def test_what_asks_for_it_is_started_again(tmp_path, code, ended):
    assert supervised(tmp_path, code) == ended


def test_a_mistake_of_one_process_is_the_run_s(tmp_path):
    assert supervised(tmp_path, "sys.exit(75 if n == 1 else 2)", count=2) == (2, 2)


def test_a_signal_reaches_the_run_which_is_to_go_on(tmp_path):
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    code = "signal.signal(15, lambda *a: (save(3), sys.exit(0)))\ntime.sleep(60)"
    assert supervised(tmp_path, code) == (75, 1)
    assert (tmp_path / "saved").read_text() == "3"


@pytest.mark.parametrize(
    "workdir", ["runs/a", "gs://bucket/A_b.c/", "/x/" + "y" * 99, "/", "d=1,lr=0.1-ab"]
)
def test_names_are_dns_labels(workdir):
    name = launch.dns_name(workdir)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 40
    assert name != launch.dns_name(workdir + "x")


# Slurm


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder on PATH whose sbatch keeps what it is given, and srun and squeue do nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {"sbatch": f"cp $1 {folder}/given; echo Submitted batch job 7", "srun": "exit 1"}
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755 | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize("count", [1, 3])
def test_a_dry_run_is_what_sbatch_gets(cluster, tmp_path, count):
    options = ["partition=a b", "time=60", "cpus_per_task=4"]
    parameters = launch.slurm_parameters("name", 2, 1, 8, options)
    jobs = launch.slurm_submit(tmp_path, parameters, [COMMAND] * count)
    given = (cluster / "given").read_text()
    assert given == launch.slurm_script(tmp_path, parameters, count if count > 1 else None)
    assert [job.name for job in jobs] == (["7"] if count == 1 else ["7_0", "7_1", "7_2"])
    lines = given.splitlines()
    for line in ("nodes=2", "ntasks-per-node=1", "gpus-per-node=8", "time=60", "requeue"):
        assert f"#SBATCH --{line}" in lines
    assert {"#SBATCH --signal=USR2@120", "#SBATCH --open-mode=append"} <= set(lines)
    assert "#SBATCH --partition='a b'" in lines
    assert ("#SBATCH --array=0-2%3" in lines) == (count > 1)
    subprocess.run(["bash", "-n"], input=given, text=True, check=True)


def test_options_that_sbatch_does_not_have():
    with pytest.raises(UserError, match=r"no 'partitoin'. Did you mean 'partition'\?"):
        launch.slurm_parameters("name", 1, 1, 0, ["partitoin=a"])
    with pytest.raises(UserError, match="--slurm=qos has no value"):
        launch.slurm_parameters("name", 1, 1, 0, ["qos"])


def test_no_scheduler_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"needs sbatch, which is not here.*--dry_run"):
        launch.slurm_submit(tmp_path, {}, [COMMAND])
    with pytest.raises(UserError, match=r"needs kubectl, which is not here.*--dry_run"):
        launch.gke_submit("a", "{}")


def test_a_job_has_ended_when_the_queue_knows_it_no_more(cluster):
    job = launch.slurm_job("7")
    for text, code in (
        ("echo RUNNING", None),
        ("true", 0),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", 0),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", None),
    ):
        (cluster / "squeue").write_text(f"#!/bin/bash\n{text}\n")
        (cluster / "squeue").chmod(0o755)
        assert job.poll() == code, text


# Kubernetes. What a field may be: a type, a pattern, a set of values, [element], {name: ...,
# "name!": ... if it is required}; {str: x} has any names. Of
# - kubernetes-sigs/jobset 0336a8fd9fd3 (after v0.10), api/jobset/v1alpha2/jobset_types.go, and what
#   its jobset_webhook.go validates;
# - kubernetes-sigs/kueue 013c8f252cf1, apis/kueue/v1beta2/{clusterqueue,localqueue,
#   resourceflavor}_types.go;
# - jobs in it, batch/v1: kubernetes-sigs/jobset 01078527ec43,
#   config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml; pods: core/v1 of Kubernetes 1.31.

LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
NAME = rf"{LABEL}(\.{LABEL})*"
LABELS = {str: str}
CONTAINER = {
    "name!": LABEL,
    "image": str,
    "command": [str],
    "resources": {"limits": {str: int}},
    "volumeMounts": [{"name!": LABEL, "mountPath!": str}],
}
POD = {
    "restartPolicy": {"Never"},  # all that a podFailurePolicy goes with
    "terminationGracePeriodSeconds": int,
    "nodeSelector": LABELS,
    "containers!": [CONTAINER],
    "volumes": [{"name!": LABEL, "emptyDir": {"medium": {"", "Memory"}}}],
}
EXIT_CODES = {"containerName": NAME, "operator!": {"In", "NotIn"}, "values!": [int]}
ACTIONS = {"FailJob", "Ignore", "Count", "FailIndex"}
JOB = {
    "completionMode": {"Indexed", "NonIndexed"},
    "parallelism": int,
    "completions": int,
    "backoffLimit": int,
    "podFailurePolicy": {"rules!": [{"action!": ACTIONS, "onExitCodes": EXIT_CODES}]},
    "template!": {"spec": POD},
}
RULE = {
    "name!": r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?",
    "action!": {
        *("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
        *("RestartJob", "RestartJobAndIgnoreMaxRestarts"),
    },
    "onJobFailureReasons": [
        {
            *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"),
            *("MaxFailedIndexesExceeded", "PodFailurePolicy"),
        }
    ],
    "onJobFailureMessagePatterns": [str],
    "targetReplicatedJobs": [LABEL],
}
METADATA = {"name!": NAME, "namespace": NAME, "labels": LABELS, "annotations": LABELS}
JOBSET = {
    "replicatedJobs": [{"name!": LABEL, "replicas": int, "template!": {"spec": JOB}}],
    "suspend": bool,
    "failurePolicy": {
        "maxRestarts": int,
        "restartStrategy": {"Recreate", "BlockingRecreate", "InPlaceRestart"},
        "rules": [RULE],
    },
}
FLAVOR = {"name!": NAME, "resources!": [{"name!": str, "nominalQuota!": int}]}
SPECS = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): JOBSET,
    ("kueue.x-k8s.io/v1beta2", "ResourceFlavor"): {"nodeLabels": LABELS},
    ("kueue.x-k8s.io/v1beta2", "ClusterQueue"): {
        "namespaceSelector": {"matchLabels": LABELS},
        "resourceGroups": [{"coveredResources!": [str], "flavors!": [FLAVOR]}],
    },
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): {"clusterQueue": NAME},
}


def check(value, rule, path):
    if isinstance(rule, set):
        assert value in rule, path
    elif isinstance(rule, str):
        assert isinstance(value, str) and re.fullmatch(rule, value) and len(value) < 254, path
    elif isinstance(rule, list):
        assert isinstance(value, list) and value, path
        for element in value:
            check(element, rule[0], f"{path}[]")
    elif isinstance(rule, dict):
        assert isinstance(value, dict), path
        fields = {str(name).removesuffix("!"): its for name, its in rule.items()}
        for name, its in value.items():
            assert str in rule or name in fields, f"{path}.{name} is no field"
            check(its, rule[str] if str in rule else fields[name], f"{path}.{name}")
        for name in rule:
            required = name is not str and name.endswith("!")
            assert not required or name[:-1] in value, f"{path}.{name} is missing"
    else:
        assert type(value) is rule, path


def checked(item):
    """An object of a manifest."""
    assert set(item) == {"apiVersion", "kind", "metadata", "spec"}
    check(item["metadata"], METADATA, "metadata")
    check(item["spec"], SPECS[item["apiVersion"], item["kind"]], item["kind"])
    return item


def jobset(accelerator, chips=0, nodes=1, slices=1, queue=""):
    name = launch.dns_name("gs://b/a")
    text = launch.jobset(name, COMMAND, "image:1", accelerator, chips, nodes, slices, queue)
    return checked(json.loads(text))


def parts(item):
    """(metadata, spec, spec of its Job, of its pods, container) of a JobSet."""
    job = item["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    return item["metadata"], item["spec"], job, pod, pod["containers"][0]


def test_gpus_as_a_jobset():
    item = jobset("nvidia-h100-80gb", chips=8, nodes=4)
    metadata, spec, job, pod, container = parts(item)
    assert job["parallelism"] == job["completions"] == 4 and job["completionMode"] == "Indexed"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    # A pod is <JobSet>-<replicated job>-<job>-<pod>.<JobSet>.
    coordinator = f"--coordinator={metadata['name']}-lm-0-0.{metadata['name']}:8476"
    members = [coordinator, "--num_processes=4", "--process_id=$(JOB_COMPLETION_INDEX)"]
    assert container["command"] == [*COMMAND, *members]
    assert "suspend" not in spec and "labels" not in metadata
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]
    alone = jobset("nvidia-h100-80gb", chips=8)
    assert parts(alone)[-1]["command"] == COMMAND


@pytest.mark.parametrize(
    ("topology", "chips", "nodes", "each"),
    [("2x2x4", 0, 4, 4), ("2x4", 0, 2, 4), ("2x4", 8, 1, 8), ("1x1", 0, 1, 1)],
)
def test_tpus_as_a_jobset(topology, chips, nodes, each):
    """GKE tells them who they are; each slice is a job on a node pool of its own."""
    item = jobset(f"tpu-v5p-slice:{topology}", chips=chips, slices=2, queue="lm")
    metadata, spec, job, pod, container = parts(item)
    assert (job["completions"], container["resources"]["limits"]) == (
        nodes,
        {"google.com/tpu": each},
    )
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert container["command"] == COMMAND
    assert spec["replicatedJobs"][0]["replicas"] == 2
    # Kueue's webhook suspends it as it is made; a field here would suspend it again when the same
    # manifest is applied to one that runs.
    assert metadata["labels"] == {"kueue.x-k8s.io/queue-name": "lm"} and "suspend" not in spec
    exclusive = metadata["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert exclusive == "cloud.google.com/gke-nodepool"


def test_the_queue_admits_what_jobsets_ask_for():
    """experiments/kueue.yaml, which --queue=lm names."""
    items = [*map(checked, yaml.safe_load_all((ROOT / "experiments/kueue.yaml").read_text()))]
    kinds = [item["kind"] for item in items]
    assert kinds == ["ResourceFlavor", "ResourceFlavor", "ClusterQueue", "LocalQueue"]
    *flavors, queue, local = items
    labels = {item["metadata"]["name"]: item["spec"]["nodeLabels"] for item in flavors}
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    admitted = {}
    for group in queue["spec"]["resourceGroups"]:
        (flavor,) = group["flavors"]
        assert [each["name"] for each in flavor["resources"]] == group["coveredResources"]
        admitted |= dict.fromkeys(group["coveredResources"], labels.pop(flavor["name"]))
    assert not labels
    for asked in (("nvidia-h100-80gb", 8), ("tpu-v5p-slice:2x2x4",)):
        *_, pod, container = parts(jobset(*asked, queue=local["metadata"]["name"]))
        (resource,) = container["resources"]["limits"]
        assert admitted[resource].items() <= pod["nodeSelector"].items()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"accelerator": "tpu-v5p-slice"}, "must have a topology"),
        ({"accelerator": "tpu-v5p-slice:2x0"}, "must have a topology"),
        ({"accelerator": "tpu-v5p-slice:2x2", "chips": 3}, "does not divide the 4 of 2x2"),
        ({"accelerator": "nvidia-l4"}, "needs --chips=N"),
        ({"accelerator": "nvidia-l4", "chips": 1, "slices": 2}, "--slices=2 is for TPUs"),
    ],
)
def test_a_jobset_that_cannot_be(flags, said):
    with pytest.raises(UserError, match=said):
        jobset(**flags)


def test_the_checker_sees_what_is_wrong():
    item = jobset("nvidia-l4", chips=1)
    for change in (
        lambda item: item["spec"].update(restarts=3),
        lambda item: item["spec"]["failurePolicy"]["rules"][0].pop("name"),
        lambda item: parts(item)[3].update(restartPolicy="Always"),
        lambda item: item["metadata"].update(name="A"),
    ):
        wrong = json.loads(json.dumps(item))
        change(wrong)
        with pytest.raises(AssertionError):
            checked(wrong)


# TPU VMs


def test_tpu_vms_get_the_code_run_and_are_deleted():
    script = launch.tpu_vm("lm-a", COMMAND, "s3", "v5p-32", "us-east5-a", "v2", True)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    first, told, archive, create, trap, copy, run = map(shlex.split, script.splitlines())
    assert first == ["set", "-e"] and (trap[0], trap[-1]) == ("trap", "EXIT")
    assert told[:3] == ["git", "diff", "--quiet"]
    assert archive[:2] == ["git", "archive"] and archive[-1] == "HEAD"
    assert archive[3] == f"--output={copy[5]}"
    last = shlex.split(trap[1])
    for command in (create, copy, run, last):
        assert command[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
        assert "--zone=us-east5-a" in command
    assert create[4] == "create" and {"--spot", "--accelerator-type=v5p-32"} <= set(create)
    assert last[4:6] == ["delete", "lm-a"]
    (text,) = (flag.removeprefix("--command=") for flag in run if flag.startswith("--command="))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert shlex.split(text.rpartition(" && ")[2]) == COMMAND and ".[tpu,s3]" in text
