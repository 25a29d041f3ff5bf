"""Eight fake CPU devices, a compilation cache that outlives the run, a folder for token stores.

All are environment variables, set before jax is imported and inherited by what tests start.
"""

import os
import pathlib
import shutil
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEVICES = "--xla_force_host_platform_device_count"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()

# Tests compile a lot of small things, over and over.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/lm/tests-jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# jax would keep a bound itself, but read the age of every entry for each that it adds: hours for
# all that these tests compile. Here it is kept once, before they start.
CACHE_BYTES = 4 << 30


def trim(folder, limit):
    """Delete what a killed test left empty, and the oldest entries beyond `limit` bytes."""
    entries = [(path, path.stat()) for path in pathlib.Path(folder).glob("*-cache")]
    for path, stat in sorted(entries, key=lambda entry: entry[1].st_mtime, reverse=True):
        limit -= stat.st_size
        if limit < 0 or not stat.st_size:
            path.unlink(missing_ok=True)


if "PYTEST_XDIST_WORKER" in os.environ:
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
os.environ.setdefault("MPLBACKEND", "agg")
# gcsfs reads it when it is imported: with it a bucket's kind is asked of Google itself.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
# Else submitit, when it is imported, closes every handler of logging, pytest's too.
os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")

# Token stores: one folder for all workers of a run, which inherit it from the process that made it.
made_cache = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    trim(os.environ["JAX_COMPILATION_CACHE_DIR"], CACHE_BYTES)
    made_cache = os.environ["LM_CACHE"] = tempfile.mkdtemp(prefix="lm-tests-")


def pytest_unconfigure():
    if made_cache:
        shutil.rmtree(made_cache, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of data that lies beside the checkout, where there is one."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("there is no ../shared/data beside this checkout")
    return path
