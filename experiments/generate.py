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
from lm.axes import AXES
from lm.errors import require
from lm.paths import as_path

flags = cli.Parser(__doc__, config="none")
flags.add_argument("--workdir", required=True, metavar="FOLDER", help="the run to sample from")
flags.add_argument("--prompt", metavar="TEXT", action="append", help="what to continue")
SETTINGS = {
    "num_tokens": (100, "at most, a sample"),
    "num_samples": (1, "samples of each prompt"),
    "temperature": (1.0, "0: greedy; 1: as trained"),
    "top_k": (0, "of the N likeliest only; 0: all"),
    "top_p": (1.0, "of the likeliest that reach N"),
    "seed": (0, "another seed, other samples"),
}
for name, (value, told) in SETTINGS.items():
    told = f"{told} ({value:g})"
    flags.add_argument(f"--{name}", type=type(value), metavar="N", help=told)
flags.add_argument("--step", type=int, metavar="N", help="a run's checkpoint; without, the newest")
MESH = {
    "data": "copies of the model, for many samples",
    "fsdp": "the same, each with its part of the weights",
    "tensor": "devices that share each product",
}
for axis, told in MESH.items():
    flags.add_argument(f"--mesh.{axis}", type=int, metavar="N", help=told)
flags.add_argument("--json", action="store_true", help="print a JSON object for each sample")


def generate(argv):
    arguments = flags.parse(argv)
    # A shell may pass broken UTF-8.
    prompts = [text.encode(errors="replace").decode() for text in arguments.prompt or [""]]
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    settings = {name: given.get(name, value) for name, (value, _) in SETTINGS.items()}
    mesh = {axis: given[f"mesh.{axis}"] for axis in AXES if f"mesh.{axis}" in given}
    from lm.sampling.sample import check_settings

    check_settings(**settings)
    model = lm.load(arguments.workdir, arguments.step, mesh or None)
    if model.config.stack == "encoder":
        wrong = [f"--{name}={given[name]}" for name in SETTINGS if name in given]
        unused = f"{' '.join(wrong)}: an encoder fills blanks and samples nothing; leave it out."
        require(not wrong, unused)
        for prompt in prompts:
            show_filled(prompt, *lm.fill(model, prompt), arguments.json)
        return
    check_blanks(as_path(arguments.workdir), prompts)
    begun = time.perf_counter()
    samples = lm.generate(model, prompts, **settings)
    seconds = time.perf_counter() - begun
    show(prompts, samples, arguments.json, model.config.stack == "decoder")
    count = sum(len(sample.tokens) for of_prompt in samples for sample in of_prompt)
    speed = f"{count} tokens in {seconds:.2f} s, {count / seconds:.0f} tokens/s"
    print(f"{speed}, compilation included", file=sys.stderr)


def check_blanks(workdir, prompts):
    """Refuse prompts without a blank, if the run has learned from texts with blanks alone (T5)."""
    objective = json.loads((workdir / "config.json").read_text()).get("objective", {})
    if objective.get("kind") == "span_corruption":
        for prompt in prompts:
            told = f"--prompt={prompt!r} has no blank; write <extra_id_0> where text is missing."
            require("<extra_id_" in prompt, told)


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
    texts = []
    for prompt, of_prompt in zip(prompts, samples, strict=True):
        for number, sample in enumerate(of_prompt):
            row = {"prompt": prompt, "sample": number, **dataclasses.asdict(sample)}
            text = (prompt if after_prompt else "") + sample.text
            texts.append(json.dumps(row) if as_json else text)
    print(("\n" if as_json else f"\n{'-' * 20}\n").join(texts))


if __name__ == "__main__":
    cli.main(generate)
