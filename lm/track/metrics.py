"""metrics.jsonl: one JSON object per logged step, and TensorBoard or Weights & Biases if asked.

A step may be written in several objects (training, then evaluation) and again after a resume; the
later value of a key counts. A killed run may leave its last line torn: it is mended on opening.

In a bucket, where nothing can be appended to, the lines are in metrics.parts/<number>.jsonl, of
which the last is written anew every FLUSH_SECONDS and before a checkpoint: all that a killed run
loses is what its resumption logs again.
"""

import contextlib
import json
import math
import time
import uuid

from lm.errors import RunError, optional, require, require_path
from lm.paths import as_path, is_url, write

FLUSH_SECONDS = 10
PART_BYTES = 1 << 18


class MetricsWriter(contextlib.AbstractContextManager):
    """Appends to workdir/metrics.jsonl, or to a bucket's parts. Of several processes, one has it.

    tensorboard: also event files in workdir/tensorboard. wandb_project: also a run there, which a
    resumed workdir goes on with. config: a mapping that is saved with it.
    Raises UserError if the package that one of them needs is not installed.
    """

    def __init__(self, workdir, tensorboard=False, wandb_project="", config=None):
        workdir = as_path(workdir)
        self.sinks = []
        if tensorboard:
            require_path("with metrics.tensorboard=True, --workdir", str(workdir))
            self.sinks.append(_TensorBoard(workdir / "tensorboard"))
        if wandb_project:
            self.sinks.append(_WandB(workdir, wandb_project, config))
        self.path = workdir / "metrics.jsonl"
        _mend(self.path)
        if is_url(workdir):
            self.file = _Parts(workdir / "metrics.parts")
        else:
            self.file = self.path.open("ab", buffering=0)
        self.flush = self.file.flush  # returns when a crash cannot take what was written

    def write(self, step, values):
        """values: {name: number}, arrays of one number too; a text, such as a fingerprint, stays.
        float32 values come back exactly; what is not finite is written as null. Raises RunError if
        the disk is full.
        """
        values = {name: x.item() if hasattr(x, "item") else x for name, x in values.items()}
        numbers = {name: x for name, x in values.items() if not isinstance(x, str)}
        numbers = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        line = json.dumps({"step": int(step), **values, **numbers}, allow_nan=False) + "\n"
        try:
            # One call: a reader never sees half of what we wrote.
            written = self.file.write(line.encode())
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}.") from error
        if written != len(line):
            raise RunError(f"{self.path} cannot be written: the disk is full.")
        for sink in self.sinks:
            sink.write(int(step), {name: x for name, x in numbers.items() if x is not None})

    def close(self):
        self.file.close()
        for sink in self.sinks:
            sink.close()

    def __exit__(self, *exception):
        self.close()


class _Parts:
    """Takes the bytes of whole lines, as a file does, into numbered objects of a bucket."""

    def __init__(self, folder):
        self.folder, self.content, self.flushed = folder, b"", time.monotonic()
        numbers = [int(path.stem) for path in _parts(folder)]
        self.number, self.size = max(numbers, default=-1) + 1, 0

    def write(self, line):
        self.content += line
        if time.monotonic() > self.flushed + FLUSH_SECONDS:
            self.flush()
        return len(line)

    def flush(self):
        if len(self.content) > self.size:
            write(self.folder / f"{self.number:08}.jsonl", self.content)
            self.size = len(self.content)
            if self.size > PART_BYTES:
                self.number, self.content, self.size = self.number + 1, b"", 0
        self.flushed = time.monotonic()

    close = flush


def _parts(folder):
    return sorted(folder.glob("*.jsonl")) if folder.is_dir() else []


def logged(path):
    """The bytes of a metrics.jsonl, or of the parts that stand for it; None if there are none."""
    path = as_path(path)
    parts = [path] if path.is_file() else _parts(path.parent / "metrics.parts")
    return b"".join(part.read_bytes() for part in parts) if parts else None


def read_metrics(path):
    """[{"step": step, name: value, ...}], one dict per step, in order of steps. Raises UserError if
    the file is missing or a line other than a torn last one is no JSON object.
    """
    content = logged(path)
    told = f"there is no {path}; name the metrics.jsonl of a run that logged a step."
    require(content is not None, told)
    rows, lines = {}, content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        row, last = _parse(line), number == len(lines)
        told = f"line {number} of {path} is not a logged step; remove the line."
        require(row or last or not line, told)
        if row:
            rows.setdefault(row["step"], {}).update(row)
    return [rows[step] for step in sorted(rows)]


def _parse(line):
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _mend(path):
    """Drop what follows the last line end, or end it if it is a whole line."""
    content = path.read_bytes() if path.is_file() else b""
    if torn := content[content.rfind(b"\n") + 1 :]:
        with path.open("r+b") as file:
            file.seek(0 if _parse(torn) else -len(torn), 2)
            file.write(b"\n" if _parse(torn) else b"")
            file.truncate()


class _TensorBoard:
    def __init__(self, folder):
        self.module = optional("tensorboardX", "metrics.tensorboard=True", "tensorboard")
        self.folder, self.writer = folder, None

    def write(self, step, numbers):
        if self.writer is None:  # from its first step on, a resumed run replaces what was logged
            names = {"logdir": str(self.folder), "filename_suffix": f".{uuid.uuid4().hex}"}
            self.writer = self.module.SummaryWriter(purge_step=step, **names)
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)

    def close(self):
        if self.writer is not None:
            self.writer.close()


class _WandB:
    def __init__(self, workdir, project, config):
        module = optional("wandb", f"metrics.wandb_project={project!r}", "wandb")
        name = workdir / "wandb" / "id"
        if not name.exists():
            name.parent.mkdir(exist_ok=True)
            name.write_text(uuid.uuid4().hex)
        where = {"project": project, "id": name.read_text()}
        if not is_url(workdir):  # its own files cannot lie in a bucket: there it chooses a folder
            where["dir"] = str(workdir)
        self.run = module.init(**where, resume="allow", config=config)
        # Its own step may not go back, as ours does after a resume.
        self.run.define_metric("*", step_metric="step")

    def write(self, step, numbers):
        self.run.log({"step": step, **numbers})

    def close(self):
        self.run.finish()
