"""environment.json: what each start of a run ran on and with, so that it can be repeated."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path

from lm.errors import UserError, require
from lm.paths import as_path, write

PACKAGES = ("lm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
VARIABLES = re.compile("(CUDA|JAX|LIBTPU|LM|NCCL|OMP|SLURM|TPU|XLA)_")
SECRETS = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|JWT", re.IGNORECASE)


def environment(hosts=None):
    """Versions, devices, commit of the code, variables that matter (no secrets), command, time."""
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    names = filter(VARIABLES.match, sorted(os.environ))
    return {
        "start": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": sys.orig_argv,
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **{x: _version(x) for x in PACKAGES}},
        "code": commit(Path(__file__).resolve().parents[2]),
        "backend": jax.default_backend(),
        "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        "processes": jax.process_count(),
        "hosts": hosts or [socket.gethostname()],  # of each process
        "cores": os.cpu_count(),
        "variables": {name: os.environ[name] for name in names if not SECRETS.search(name)},
    }


def write_environment(workdir, hosts=None):
    """Add this start to the list in workdir/environment.json; returns what was added."""
    path = as_path(workdir) / "environment.json"
    try:
        starts = json.loads(path.read_text()) if path.exists() else []
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); move it away.") from error
    require(isinstance(starts, list), f"{path} is not a list of starts; move it away.")
    starts.append(environment(hosts))
    write(path, json.dumps(starts, indent=2) + "\n")
    return starts[-1]


def commit(folder):
    """{"commit": hash, "dirty": whether files differ from it}; None if folder is no checkout."""
    if not (folder / ".git").exists():
        return None
    try:
        head, changes = (
            subprocess.check_output(["git", *of], cwd=folder, stderr=subprocess.DEVNULL, text=True)
            for of in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
        return {"commit": head.strip(), "dirty": bool(changes.strip())}
    except (OSError, subprocess.CalledProcessError):  # no git here, no commit yet, not our files
        return None


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None
