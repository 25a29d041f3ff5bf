"""Checkpoints: a training state on disk, saved in the background and proved when it is read.

    <folder>/<step>/state/         the arrays, in Orbax's format
    <folder>/<step>/manifest.json  metrics; each array's shape, dtype and checksum; each file's
                                   size and CRC-32

A checkpoint is written as <step>.partial and renamed when it is complete: what a killed run leaves
is never taken for one. An array's checksum is of what it holds, taken on the devices when `save` is
called and again after a restore, on whatever mesh: it covers host memory, Orbax, the disk and the
placing. The CRCs find damage before Orbax meets it. An array's name is its path in the state:
"params/embed/table_VD".

In a bucket, where nothing can be renamed, what makes <step> a checkpoint is its manifest, which is
written last and deleted first. It has the files' sizes there and no CRCs, for which all that was
saved would have to be fetched again.
"""

import concurrent.futures
import contextlib
import functools
import json
import logging
import math
import os
import re
import sys
import time
import warnings
import zlib

import jax

# Orbax imports this, and with it state that jax 0.12 keys its caches by: imported only at the first
# save, it would make every compiled function, the train step first, compile again.
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, NamedSharding, SingleDeviceSharding

from lm.errors import RunError, require
from lm.nn.params import named, nested
from lm.paths import as_path, explained, files_below, is_url, remove, write

MANIFEST = "manifest.json"
FILE_BLOCK = 2**22  # bytes
READERS = 8  # threads


class Damaged(Exception):
    """A checkpoint that is not what was saved."""


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints in a folder: a context manager, as a save not waited for is lost at exit.

    config: a CheckpointConfig, or None for reading only, which creates and deletes nothing. There
    is one writer at a time: what a killed one left half written or half deleted is removed here.
    The processes of a run share the folder and call each method together.
    """

    def __init__(self, folder, config=None):
        folder = as_path(folder)
        self.folder = folder if is_url(folder) else folder.absolute()
        self._config = config
        self._damaged = set()
        self._pending = None
        self.seconds = {}  # of saves that are on disk, {step: from the call of save to then}
        self._background = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        if config is not None and jax.process_index() == 0:
            whole = {*map(str, self.steps())}
            for path in self.folder.glob("*"):
                name, _, kind = path.name.partition(".")
                if kind in ("partial", "deleted") or (name.isdecimal() and name not in whole):
                    remove(path)

    def steps(self):
        """The steps that have a checkpoint, ascending."""
        paths = [path for path in self.folder.glob("*") if path.name.isdecimal()]
        # Without a manifest a file system's is damaged, and a bucket's not yet, or no longer, one.
        there = [path for path in paths if not is_url(path) or (path / MANIFEST).exists()]
        return sorted(int(path.name) for path in there)

    def save(self, step, state, metrics=None, wait=False):
        """Save a pytree of jax.Arrays as checkpoint `step`, unless there is a good one.

        Returns when the caller may donate the arrays or, with wait, when they are on disk.
        metrics: {name: number}; config.keep_best goes by "eval/loss", lower is better.
        Raises RunError if this checkpoint, or the one saved before it, cannot be written.
        """
        self.wait()
        began = time.perf_counter()
        if _of_first_process(step in self.steps() and step not in self._damaged):
            return
        arrays = named(state)
        entries = {n: {"shape": [*x.shape], "dtype": str(x.dtype)} for n, x in arrays.items()}
        checksums = _checksums(arrays)
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        with self._writing(step):
            if step in self._damaged:
                self._delete(step)
            request = _orbax().args.PyTreeSave(nested(arrays))
            self._saver.save(self._partial(step) / "state", args=request)
        commit = self._background.submit(self._commit, step, entries, checksums, metrics, began)
        self._pending = step, commit
        if wait:
            self.wait()

    def wait(self):
        """Return when the last save is on disk. Raises RunError if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            step, commit = pending
            with self._writing(step):
                commit.result()

    def __exit__(self, *_):
        """Wait for the last save and end the threads."""
        try:
            self.wait()
        finally:
            self._background.shutdown()
            if "_saver" in vars(self):
                self._saver.close()

    def restore(self, template, step=None, partial=False):
        """(step, state) of the newest good checkpoint or of that of `step`; None if there is none.

        template: a pytree of arrays or jax.ShapeDtypeStructs with the shardings to restore to.
        Abstract ones, as of jax.eval_shape, mean the mesh of jax.set_mesh; none the first device.
        partial: the checkpoint may hold arrays that the template lacks.
        A damaged checkpoint is reported on stderr, once, and the one before it is used.
        Raises RunError if there are checkpoints but no good one, UserError if a good one holds
        other arrays than the template.
        """
        targets = named(jax.tree.map(_target, template))
        self.wait()
        steps = self.steps()
        if step is not None:
            options = ", ".join(map(str, steps)) or "none"
            require(step in steps, f"{self.folder} has no checkpoint {step}; it has: {options}.")
            steps = [step]
        if not _of_first_process(len(steps)):
            return None
        # What the first process sees is tried: a network's disk may show each something else.
        while (candidate := _of_first_process(steps.pop() if steps else -1)) >= 0:
            path = self.folder / str(candidate)
            try:
                with _on_every_process():
                    manifest = _manifest(path)
                    _check_files(path, manifest["files"])
                with _on_every_process():
                    _check_fit(path, manifest["arrays"], targets, partial)
                    arrays = _read(path, targets)
                _check_arrays(arrays, manifest["arrays"])
                leaves = [arrays[name] for name in targets]
                return candidate, jax.tree.unflatten(jax.tree.structure(template), leaves)
            except Damaged as damage:
                if candidate not in self._damaged:
                    print(f"Checkpoint {path} is damaged and not used: {damage}.", file=sys.stderr)
                self._damaged.add(candidate)
        told = f"No good checkpoint in {self.folder}: all that were tried are damaged, as said"
        remedy = (
            "above. Put back a copy of one, or move the folder away to start from the first step."
        )
        raise RunError(f"{told} {remedy}")

    @functools.cached_property
    def _saver(self):
        # Processes share the writing of copied arrays; for one alone, cutting them up only costs.
        ocp, share = _orbax(), jax.process_count() > 1
        assert self._config is not None, "opened for reading only"
        handlers = ocp.type_handlers.create_type_handler_registry(
            (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=share))
        )
        # Weights and moments are close to noise: compression saves 8% of the bytes for more time.
        in_place = ocp.path.atomicity.CommitFileTemporaryPath if is_url(self.folder) else None
        return ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(
                use_compression=False,
                type_handler_registry=handlers,
                save_device_host_concurrent_gb=self._config.host_gb or None,
            ),
            temporary_path_class=in_place,
        )

    def _partial(self, step):
        return self.folder / (str(step) if is_url(self.folder) else f"{step}.partial")

    @contextlib.contextmanager
    def _writing(self, step):
        """Turn what the disk raises, itself or through Orbax (ValueError), into a RunError."""
        path = self.folder / str(step)
        try:
            with explained(path):
                yield
        except (OSError, ValueError, RunError) as error:
            resumed = "goes on from the one before"
            if not is_url(path):  # of a bucket we may not learn more now
                if jax.process_index() == 0:
                    remove(self._partial(step))
                good = [other for other in self.steps() if other not in self._damaged]
                resumed = f"goes on from step {good[-1]}" if good else "starts from the first step"
            told = f"Checkpoint {path} could not be written: {_reason(error)}. Mend that (disk"
            told += f" space, quota?) and run the same command again: it {resumed}."
            raise RunError(told) from error

    def _commit(self, step, entries, checksums, metrics, began):
        """In the background: let Orbax finish, add the manifest, rename, delete what is old."""
        self._saver.wait_until_finished()
        if jax.process_index():
            return
        partial = self._partial(step)
        for name, found in jax.device_get(checksums).items():
            entries[name]["checksum"] = int(found)
        manifest = {"step": step, "metrics": metrics, "arrays": entries, "files": _files(partial)}
        content = json.dumps({"crc32": _crc32_of_json(manifest), "manifest": manifest})
        write(partial / MANIFEST, content)
        if not is_url(partial):
            partial.rename(self.folder / str(step))
        self.seconds[step] = time.perf_counter() - began
        self._prune(step)

    def _prune(self, saved):
        """Delete what the config does not keep, and what is known to be damaged."""
        config, losses = self._config, {}
        assert config is not None, "opened for reading only"
        for step in self.steps():
            with contextlib.suppress(Damaged):
                if step not in self._damaged:
                    metrics = _manifest(self.folder / str(step))["metrics"]
                    losses[step] = metrics.get("eval/loss", math.nan)
        good, every = list(losses), config.keep_every_steps
        finite = [step for step in good if math.isfinite(losses[step])]
        ranked = sorted(finite, key=lambda step: losses[step])
        kept = {saved, *good[-config.keep_last :], *ranked[: config.keep_best]}
        kept.update(step for step in good if every and step % every == 0)
        for step in self.steps():
            if step not in kept:
                self._delete(step)

    def _delete(self, step):
        self._damaged.discard(step)
        if jax.process_index() == 0:
            # Half deleted, it must not be taken for a checkpoint.
            path = self.folder / str(step)
            if is_url(path):
                (path / MANIFEST).unlink(missing_ok=True)
            else:
                path = path.rename(self.folder / f"{step}.deleted")
            remove(path)


@functools.cache
def _orbax():
    """orbax.checkpoint: imported on first use (0.7 s) and silenced: what matters it also raises."""
    import orbax.checkpoint

    folder = f"{os.sep}orbax{os.sep}"
    logging.getLogger("absl").addFilter(lambda record: folder not in record.pathname)
    # Of a save that fails, the first array's error is raised. The others' are not awaited, and
    # tensorstore tells them to a loop that Orbax has closed: asyncio and Python would print them.
    told = (folder, "exception was never retrieved")
    logging.getLogger("asyncio").addFilter(
        lambda record: not any(part in record.getMessage() for part in told)
    )
    warnings.filterwarnings("ignore", r"coroutine .*write_fragment.* was never awaited")
    show = sys.unraisablehook

    def show_others(unraisable):  # a read that fails leaves Orbax's others to the interpreter's end
        code = getattr(unraisable.object, "cr_code", None)
        of_orbax = folder in getattr(code, "co_filename", "")
        if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others
    _teach_s3()
    return orbax.checkpoint


def _teach_s3():
    """Let Orbax, which has tensorstore's drivers for files and gs:// only, use that for s3:// too.

    It specifies all stores in one function. Endpoint and region are those that s3fs has found.
    """
    from orbax.checkpoint._src.serialization import tensorstore_utils

    specify = tensorstore_utils.build_kvstore_tspec

    def specify_any(directory, *arguments, **options):
        if not directory.startswith("s3:/"):
            return specify(directory, *arguments, **options)
        import fsspec

        spec = specify(re.sub("^s3:/+", "gs://", directory), *arguments, **options)
        found, keys = fsspec.filesystem("s3").s3.meta, "AWS_ACCESS_KEY_ID" in os.environ
        driver = {"driver": "s3", "s3_request_retries": {"max_retries": 6}}  # for a minute
        driver["aws_credentials"] = {"type": "environment" if keys else "default"}
        if "amazonaws.com" not in found.endpoint_url:
            driver["endpoint"] = found.endpoint_url
            driver["aws_region"] = found.region_name or "us-east-1"
        return json.loads(re.sub(r'"driver": "gcs\w*"', json.dumps(driver)[1:-1], json.dumps(spec)))

    vars(tensorstore_utils)["build_kvstore_tspec"] = specify_any


def _read(path, targets):
    """{name: array} of a checkpoint; targets: {name: jax.ShapeDtypeStruct with a sharding}."""
    from etils import epath

    ocp = _orbax()
    args = {
        name: ocp.ArrayRestoreArgs(sharding=target.sharding, global_shape=target.shape)
        for name, target in targets.items()
    }
    request = ocp.args.PyTreeRestore(nested(targets), nested(args), partial_restore=True)
    try:
        handler = ocp.PyTreeCheckpointHandler()
        return named(handler.restore(epath.Path(path / "state"), args=request))
    except Exception as error:
        # Metadata that cannot be parsed is a ValueError; parts that are missing a bare Exception.
        if not isinstance(error, ValueError) and type(error) is not Exception:
            raise
        raise Damaged(_reason(error.__cause__ or error)) from error


def _manifest(path):
    """The manifest of the checkpoint in path. Raises Damaged."""
    # A bucket that cannot be read now is no damage, for which a checkpoint is deleted.
    missing = FileNotFoundError if is_url(path) else OSError
    with contextlib.suppress(missing, ValueError, KeyError, TypeError):
        content = json.loads((path / MANIFEST).read_text())
        if content["crc32"] == _crc32_of_json(content["manifest"]):
            return content["manifest"]
    raise Damaged(f"{MANIFEST} is missing or has changed")


def _check_files(path, files):
    """Raise Damaged unless the files are as the manifest says; each process checks its share."""
    mine = sorted(files)[jax.process_index() :: jax.process_count()]
    try:
        found = _files(path, mine)
    except OSError as error:
        if is_url(path):
            raise
        raise Damaged(f"{error.filename}: {_reason(error)}") from error
    for name in mine:
        (size, crc32), (now, crc32_now) = files[name], found.get(name, (0, None))
        if now != size:
            raise Damaged(f"{name} has {now} bytes, not {size}")
        if None not in (crc32, crc32_now) and crc32 != crc32_now:
            raise Damaged(f"{name} has changed")


def _files(path, names=None):
    """{name: [bytes, CRC-32]} of the files in path, or of those named; a bucket's have None."""
    if is_url(path):
        return {name: [info["size"], None] for name, info in files_below(path).items()}
    if names is None:
        paths = sorted(path.rglob("*"))
        names = [file.relative_to(path).as_posix() for file in paths if file.is_file()]

    def one(name):  # as fast as the disk gives them
        size = crc32 = 0
        with open(path / name, "rb") as file:
            while block := file.read(FILE_BLOCK):
                size, crc32 = size + len(block), zlib.crc32(block, crc32)
        return [size, crc32]

    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        return dict(zip(names, readers.map(one, names), strict=True))


def _crc32_of_json(content):
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _reason(error):
    """Why; of what the operating system said, without the calls tensorstore tells before it."""
    text = getattr(error, "strerror", None) or str(error)
    return text.rsplit(": ", 1)[-1].split(" [")[0] if "os_error_code" in text else text


def _check_fit(path, entries, targets, partial):
    """Raise UserError unless the arrays of a checkpoint, {name: entry}, are what targets name."""
    there = {name: f"{entry['dtype']}{entry['shape']}" for name, entry in entries.items()}
    here = {name: f"{target.dtype}{[*target.shape]}" for name, target in targets.items()}
    differences = [
        f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
        for name in sorted({*here} if partial else {*here, *there})
        if there.get(name) != here.get(name)
    ]
    more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
    told = f"The checkpoint {path} is of another model, or version of lm: "
    told += f"{'; '.join(differences[:4])}{more}. Use the config it was trained with, or another"
    require(not differences, f"{told} workdir.")


def _target(leaf):
    """Shape, dtype and concrete sharding of what is to be read for a template's leaf."""
    sharding = leaf.sharding
    if sharding is None:
        sharding = SingleDeviceSharding(jax.devices()[0])
    elif isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        sharding = NamedSharding(jax.sharding.get_mesh(), sharding.spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@jax.jit
def checksum(array):
    """The sum modulo 2**32 of an array's mixed words, the same on any mesh: a sum knows no order.

    One changed word always changes it, several do but for one case in 2**32. A 64-bit number is
    two words, a narrow one is one.
    """
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    width = min(array.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(array, f"uint{8 * width}")
    index = np.uint32(0)
    for dim, size in enumerate(words.shape):
        place = jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim)
        index = index * np.uint32(size % 2**32) + place
    # Each scrambled with its position: MurmurHash3's finalizer, a bijection.
    words = words.astype(jnp.uint32) + index * np.uint32(0x9E3779B9)
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(words ^ (words >> 16), dtype=jnp.uint32)


def _checksums(arrays):
    """{name: checksum} of {name: array}, where the arrays are."""
    checksums = {}
    # One at a time, and after the step that made the arrays: on many fake devices and few cores,
    # programs that wait for one another's sums can hold every thread until XLA aborts the process.
    jax.block_until_ready(arrays)
    for name, array in arrays.items():
        jax.block_until_ready(checksums)
        if array.sharding.memory_kind == "pinned_host":  # offloaded
            array = jax.device_put(array, array.sharding.with_memory_kind("device"))
        checksums[name] = checksum(array)
    return checksums


def _check_arrays(arrays, entries):
    """Raise Damaged unless the arrays that were read are what was saved."""
    for name, found in jax.device_get(_checksums(arrays)).items():
        if found != (saved := entries[name]["checksum"]):
            raise Damaged(f"the checksum of {name} is {found}, saved was {saved}")


def _of_first_process(number):
    """What the first process has, on all of them."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


@contextlib.contextmanager
def _on_every_process():
    """Raises Damaged on all processes if it is raised within on one."""
    damage = None
    try:
        yield
    except Damaged as error:
        damage = error
    if not np.all(multihost_utils.process_allgather(np.array(damage is None))):
        raise damage or Damaged("another process cannot read it")
