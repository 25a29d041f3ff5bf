"""Continue prompts with a trained model.

    python -m experiments.generate --workdir=runs/a --prompt="def main(" --num_tokens=100

An encoder fills the blanks of a prompt, [MASK] or <mask>; an encoder-decoder reads the prompt,
perhaps with <extra_id_0> for what is missing, and writes its target. The workdir is a run's, or a
folder in Hugging Face's format. --prompt may be given several times; without it, or empty, the
model begins a document. Each sample is printed after its prompt, its speed to stderr.
"""

import dataclasses
import json
import sys
import time

import lm
from experiments import cli
from lm.errors import UserError

flags = cli.Parser(__doc__, config="none")
flags.add_argument("--workdir", required=True, metavar="FOLDER", help="the run to sample from")
flags.add_argument("--prompt", metavar="TEXT", action="append", help="what to continue")
flags.add_argument("--num_tokens", default="100", metavar="N", help="at most, a sample (100)")
flags.add_argument("--num_samples", default="1", metavar="N", help="samples of each prompt (1)")
flags.add_argument("--temperature", default="1", metavar="X", help="0: greedy; 1: as trained (1)")
flags.add_argument("--top_k", default="0", metavar="N", help="of the N likeliest only; 0: all (0)")
flags.add_argument("--top_p", default="1", metavar="P", help="of the likeliest that reach P (1)")
flags.add_argument("--seed", default="0", metavar="N", help="another seed, other samples (0)")
flags.add_argument("--step", metavar="N", help="a run's checkpoint; without, the newest")
flags.add_argument("--mesh.data", metavar="N", help="copies of the model, for many samples")
flags.add_argument("--mesh.fsdp", metavar="N", help="the same, each with its part of the weights")
flags.add_argument("--mesh.tensor", metavar="N", help="devices that share each product")
flags.add_argument("--json", action="store_true", help="print a JSON object for each sample")

NUMBERS = {
    **dict.fromkeys(("num_tokens", "num_samples", "top_k", "seed"), int),
    **dict.fromkeys(("temperature", "top_p"), float),
    **dict.fromkeys(("step", "mesh.data", "mesh.fsdp", "mesh.tensor"), int),
}


def generate(argv):
    arguments = flags.parse(argv)
    # A shell may pass broken UTF-8.
    prompts = [text.encode(errors="replace").decode() for text in arguments.prompt or [""]]
    settings = numbers(arguments)
    step = settings.pop("step", None)
    axes = [name for name in settings if name.startswith("mesh.")]
    mesh = {name.removeprefix("mesh."): settings.pop(name) for name in axes}
    from lm.sampling.sample import check_settings

    check_settings(**settings)
    model = lm.load(arguments.workdir, step, mesh or None)
    if model.config.stack == "encoder":
        for prompt in prompts:
            show_filled(prompt, *lm.fill(model, prompt), arguments.json)
        return
    begun = time.perf_counter()
    samples = lm.generate(model, prompts, **settings)
    seconds = time.perf_counter() - begun
    show(prompts, samples, arguments.json, model.config.stack == "decoder")
    count = sum(len(sample.tokens) for of_prompt in samples for sample in of_prompt)
    speed = f"{count} tokens in {seconds:.2f} s, {count / seconds:.0f} tokens/s"
    print(f"{speed}, compilation included", file=sys.stderr)


def numbers(arguments):
    """{name: number} of the flags that are NUMBERS and are given or have a default."""
    found = {}
    for name, kind in NUMBERS.items():
        text = getattr(arguments, name)
        if text is not None:
            try:
                found[name] = kind(text)
            except ValueError:
                whole = "whole " if kind is int else ""
                raise UserError(f"--{name}={text} must be a {whole}number.") from None
    return found


def show_filled(prompt, text, blanks, as_json):
    """Print a text with its blanks filled, and what else they may be."""
    if as_json:
        found = [dataclasses.asdict(blank) for blank in blanks]
        print(json.dumps({"prompt": prompt, "text": text, "blanks": found}))
        return
    print(text)
    for blank in blanks:
        pairs = zip(blank.texts, blank.probabilities, strict=True)
        print("  " + ", ".join(f"{word.strip()} {share:.3f}" for word, share in pairs))


def show(prompts, samples, as_json, after_prompt=True):
    """Print the samples of each prompt; an encoder-decoder's without it, being no part of it."""
    rows = [
        (prompt, number, sample)
        for prompt, of_prompt in zip(prompts, samples, strict=True)
        for number, sample in enumerate(of_prompt)
    ]
    if as_json:
        for prompt, number, sample in rows:
            print(json.dumps({"prompt": prompt, "sample": number, **dataclasses.asdict(sample)}))
    else:
        print(
            f"\n{'-' * 20}\n".join(
                f"{prompt if after_prompt else ''}{sample.text}" for prompt, _, sample in rows
            )
        )


if __name__ == "__main__":
    cli.main(generate)
