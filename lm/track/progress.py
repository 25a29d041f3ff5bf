"""How a run goes: a bar on a terminal; elsewhere (pipes, Slurm's logs) a line per logged step."""

import contextlib
import datetime
import sys
import time

FORMATS = {
    "train/loss": "loss {:.4f}",
    "train/grad_norm": "gradient norm {:.3g}",
    "train/lr": "lr {:.2e}",
    "train/tokens_per_second": "{:,.0f} tokens/s",
    "train/mfu": "MFU {:.1%}",
    "eval/loss": "validation loss {:.4f}",
    "eval/bits_per_byte": "{:.4f} bits per byte",
}
BESIDE_BAR = ("train/loss", "train/tokens_per_second", "train/mfu")


class Progress(contextlib.AbstractContextManager):
    """progress(step, values) shows a logged step; values are as in metrics.jsonl. first_step: the
    first that this process runs. quiet: show nothing. file: None is sys.stdout.
    """

    def __init__(self, num_steps, first_step=0, quiet=False, file=None, clock=time.monotonic):
        self.num_steps, self.quiet, self.clock = num_steps, quiet, clock
        self.file = file or sys.stdout
        self.first, self.left = None, ""
        self.bar = None
        if self.file.isatty() and not quiet:
            from rich import progress
            from rich.console import Console

            texts = "step {task.completed}/{task.total}", "{task.fields[values]}"
            step, values, left = map(progress.TextColumn, (*texts, "{task.fields[left]}"))
            columns, console = (step, progress.BarColumn(20), values, left), Console(file=self.file)
            self.bar = progress.Progress(*columns, console=console)
            fields = {"values": "compiling", "left": ""}
            self.task = self.bar.add_task("", True, num_steps, first_step, True, **fields)
            self.bar.start()

    def __call__(self, step, values):
        if self.quiet:
            return
        trained = "train/loss" in values
        if trained:
            # The time left, at the mean pace since the first logged step: what is before compiles.
            now = self.clock()
            first_step, start = self.first = self.first or (step, now)
            if step > first_step:
                seconds = (now - start) / (step - first_step) * (self.num_steps - 1 - step)
                self.left = f"{datetime.timedelta(seconds=round(seconds))} left"
        line = f"step {step}/{self.num_steps}  {describe(values)}"
        if self.bar is None:
            ending = f"  {self.left}" if trained and self.left else ""
            print(line + ending, file=self.file, flush=True)
            return
        if trained:
            beside = describe({name: values[name] for name in BESIDE_BAR if name in values})
            self.bar.update(self.task, completed=step + 1, values=beside, left=self.left)
        if any(name.startswith("eval/") for name in values):
            self.bar.console.print(line, highlight=False)

    def close(self):
        if self.bar is not None:
            self.bar.stop()

    def __exit__(self, *exception):
        self.close()


def describe(values):
    """The values that a person looks at, in a line: those of FORMATS and every eval/ value."""
    named = {name: name.removeprefix("eval/") + " {:.4g}" for name in values if "eval/" in name}
    formats = FORMATS | {name: form for name, form in named.items() if name not in FORMATS}
    return "  ".join(form.format(values[name]) for name, form in formats.items() if name in values)
