"""Train on real text, be killed half-way, resume, and show what was learned: about three minutes.

    make demo

The text is the documentation and source of the running Python's standard library. The workdir,
runs/demo or the first free name after it, stays: sample from it, or train it further.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments import cli
from lm.errors import RunError

CONFIG = "configs/demo.py"
PROMPTS = ("def main(", "import ", "class ", "The ")
SAMPLE_TOKENS = 240

flags = cli.Parser(__doc__, config="none")


def demo(argv):
    flags.parse(argv)
    keys = cli.load_config(CONFIG, {})
    num_steps, workdir = keys.train.num_steps, free_workdir()
    command = [sys.executable, "-m", "experiments.train", f"--config={CONFIG}"]
    command.append(f"--workdir={workdir}")
    # Between two checkpoints, so that the resumed run has steps to do again.
    killed_at = num_steps // 2 + keys.checkpoint.every_steps // 2
    say(f"1. Train {num_steps} steps, and kill the process (SIGKILL) after step {killed_at}")
    killed = train_until_killed(command, workdir, killed_at)
    say("2. The same command again resumes from the last checkpoint")
    if status := subprocess.run(command).returncode:
        raise RunError(f"the resumed run ended with exit code {status}; its last lines say why.")
    compare_losses(workdir, killed)
    say("3. What it learned")
    compare_models(workdir)
    print(f"\nLoss curve: {workdir / 'curve.png'}")
    more = f"-m experiments.generate --workdir={workdir} --prompt='def ' --num_tokens=100"
    print(f"Sample more: {os.path.relpath(sys.executable)} {more}")


def say(text):
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def free_workdir():
    """runs/demo, or runs/demo-2 and so on: what an earlier demo left is kept."""
    names = ("demo", *(f"demo-{number}" for number in range(2, 10_000)))
    return next(path for path in (Path("runs") / name for name in names) if not path.exists())


def train_until_killed(command, workdir, step):
    """Start the run, kill it when it has logged `step`; gives the bytes of whole lines logged."""
    path = workdir / "metrics.jsonl"
    with subprocess.Popen(command) as process:
        try:
            while process.poll() is None and not any(row["step"] >= step for row in lines(path)):
                time.sleep(0.05)
        finally:
            process.kill()
    if process.returncode != -signal.SIGKILL:
        raise RunError(f"the run ended by itself, with exit code {process.returncode}.")
    print(f"killed; {path} ends with step {lines(path)[-1]['step']}", flush=True)
    return path.read_bytes().rfind(b"\n") + 1


def lines(path, start=0, stop=None):
    """The training steps in metrics.jsonl between two of its bytes; a torn last line is left."""
    content = path.read_bytes()[start:stop] if path.exists() else b""
    rows = map(json.loads, content.split(b"\n")[:-1])
    return [row for row in rows if "train/loss" in row]


def compare_losses(workdir, killed):
    """Print the losses of the steps that were done twice: before the kill, and after it."""
    path = workdir / "metrics.jsonl"
    before = {row["step"]: row for row in lines(path, 0, killed)}
    after = [row for row in lines(path, killed) if row["step"] in before]
    if not after:
        raise RunError("the resumed run did no step again, so there is nothing to compare.")
    print(f"\n{'step':>5}  {'loss before the kill':22} {'loss after it':22} batch")
    equal = True
    for new in after:
        old = before[new["step"]]
        same = [old[key] == new[key] for key in ("train/loss", "data/fingerprint")]
        losses = [f"{row['train/loss'].hex():22}" for row in (old, new)]
        print(f"{new['step']:5} ", *losses, "same" if same[1] else "another")
        equal &= all(same)
    if not equal:
        raise RunError("the resumed run is not the run that was killed.")
    print("Equal to the last bit.")


def compare_models(workdir):
    """Print the model's bits per byte, beside a unigram's and a bigram's, and samples."""
    import lm
    from experiments.inspect import read_config
    from lm.data.store import open_data
    from lm.evaluate.ngram import Bigram, Unigram, bits_per_byte
    from lm.track.metrics import read_metrics

    model = lm.load(workdir)
    data = open_data(read_config(workdir)[0].data, tokenizer=model.tokenizer)
    size, seen, unseen = model.tokenizer.size, data.train.tokens, data.validation
    both = {"unigram": Unigram(seen, size), "bigram": Bigram(seen, size)}
    bits = {name: bits_per_byte(x, unseen.tokens, unseen.num_bytes) for name, x in both.items()}
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "eval/bits_per_byte" in row]
    bits["this model"] = rows[-1]["eval/bits_per_byte"]
    documents = f"{unseen.num_documents} files ({unseen.num_bytes:,} bytes)"
    print(f"Bits per byte of {documents} that it was not trained on, less is better:")
    for name, value in bits.items():
        print(f"  {name:12} {value:6.3f}  {'#' * round(12 * value)}")
    if bits["this model"] >= bits["bigram"]:
        raise RunError("the model is no better than a bigram model.")
    samples = lm.generate(model, PROMPTS, SAMPLE_TOKENS, temperature=0.8)
    for prompt, [sample] in zip(PROMPTS, samples, strict=True):
        print("\n  | " + (prompt + sample.text).strip().replace("\n", "\n  | "))


if __name__ == "__main__":
    cli.main(demo)
