"""Continue prompts with a trained model.

    python -m experiments.generate --workdir=runs/a --prompt="def main(" --num_tokens=100

The workdir is a run's, or a folder in Hugging Face's format. Samples go to the standard output,
their speed to stderr.
"""

import json
import sys
import time

from experiments import cli
from lm.errors import UserError

flags = cli.Parser(__doc__, config="none")
flags.add_argument("--workdir", required=True, metavar="FOLDER", help="the run to sample from")
flags.add_argument("--prompt", default="", metavar="TEXT", help="what to continue")
flags.add_argument("--num_tokens", default="100", metavar="N", help="tokens at most (100)")
flags.add_argument("--num_samples", default="1", metavar="N", help="continuations (1)")
flags.add_argument("--temperature", default="1", metavar="X", help="0 is greedy (1)")
flags.add_argument("--top_k", default="0", metavar="N", help="of the N likeliest only; 0: all")
flags.add_argument("--top_p", default="1", metavar="P", help="of the likeliest that reach P (1)")
flags.add_argument("--seed", default="0", metavar="N", help="another seed, other samples (0)")
flags.add_argument("--step", metavar="N", help="the checkpoint to use; without it, the newest")
flags.add_argument("--mesh", default="", metavar="AXIS=N,...", help="devices, as fsdp=2,tensor=2")
flags.add_argument("--json", action="store_true", help="print JSON: an object for each sample")


def generate(argv):
    arguments = flags.parse(argv)
    whole = ("num_tokens", "num_samples", "top_k", "seed")
    settings = {name: number(arguments, name, int) for name in whole}
    settings |= {name: number(arguments, name, float) for name in ("temperature", "top_p")}
    step = None if arguments.step is None else number(arguments, "step", int)
    mesh = dict(map(axis_of, filter(None, arguments.mesh.split(","))))
    import lm

    model = lm.load(arguments.workdir, step, mesh or None)
    begun = time.perf_counter()
    [samples] = lm.generate(model, [arguments.prompt], settings.pop("num_tokens"), **settings)
    seconds = time.perf_counter() - begun
    for sample in samples:
        if arguments.json:
            print(
                json.dumps({"prompt": arguments.prompt, "text": sample.text, "ended": sample.ended})
            )
        else:
            print(f"{arguments.prompt}{sample.text}\n{'-' * 20}")
    count = sum(len(sample.tokens) for sample in samples)
    print(f"{count} tokens in {seconds:.1f} s, compilation included", file=sys.stderr)


def number(arguments, name, kind):
    text = getattr(arguments, name)
    try:
        return kind(text)
    except ValueError:
        raise UserError(
            f"--{name}={text} must be a {'whole ' if kind is int else ''}number."
        ) from None


def axis_of(text):
    axis, _, size = text.partition("=")
    if not size.isdecimal():
        raise UserError(f"--mesh={text}: it must be AXIS=N, as fsdp=2,tensor=2.")
    return axis, int(size)


if __name__ == "__main__":
    cli.main(generate)
