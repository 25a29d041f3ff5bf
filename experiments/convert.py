"""Convert a run, or a model in Hugging Face's format, to Hugging Face's format.

    python -m experiments.convert --source=runs/a --target=exported [--step=100] [--family=gpt2]
    python -m experiments.convert --source=exported --target=half --dtype=bfloat16

The target gets config.json, safetensors and the files of the tokenizer. It appears only when all
that was written has been read again, is, bit for bit, the model, and gives its logits. `lm.load`
and transformers load it. The other way needs no conversion: `lm.load` and every command that takes
a model read such a folder.
"""

from pathlib import Path

import numpy as np

from experiments import cli
from lm.errors import require_path
from lm.paths import as_path

# What a tokenizer of the hub has besides tokenizer.json, and how its model is sampled.
COPIED = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json"),
    *("vocab.txt", "spiece.model", "source.spm", "target.spm"),
)
CLOSE = 1e-4  # of the largest logit, or of 1

flags = cli.Parser(__doc__, config="none")
add = flags.add_argument
add("--source", required=True, metavar="FOLDER", help="a run's workdir, or a model's folder")
add("--target", required=True, metavar="FOLDER", help="the folder to make")
add("--step", type=int, metavar="N", help="a run's checkpoint; the newest without")
add("--family", metavar="NAME", help="as what; without, the first that fits")
dtypes = "float32", "bfloat16", "float16"
add("--dtype", choices=dtypes, help="of the parameters; without, what they are")


def convert(argv):
    arguments = flags.parse(argv)
    require_path("--target", arguments.target)
    from lm.hub.convert import export_model
    from lm.model import load
    from lm.nn.params import count_parameters

    source = load(arguments.source, arguments.step, compute_dtype="float32")
    model = source if arguments.dtype is None else source.astype(arguments.dtype)
    told = []

    def finish(folder):
        for file in map(as_path(arguments.source).joinpath, COPIED):
            if file.is_file() and not (folder / file.name).exists():
                (folder / file.name).write_bytes(file.read_bytes())
        told.append(compare_logits(model, load(folder)))

    family = export_model(model, arguments.target, arguments.family, finish=finish)
    files = sorted(path.name for path in Path(arguments.target).expanduser().iterdir())
    count = f"{count_parameters(model.module):,} parameters, {model.config.param_dtype}"
    equal = f"equal to the bit, logits within {told[0]:.1g}"
    print(f"{arguments.target}: a {family} of {count}, {equal}: {', '.join(files)}.")


def compare_logits(model, again):
    """The largest difference of two models' logits, or of their states, if they have no head.

    Raises RunError if they are not the same.
    """
    from lm.errors import RunError

    config = model.config
    length = min(64, config.num_positions)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, length))
    inputs = (tokens, tokens) if config.stack == "encoder_decoder" else (tokens,)
    expected, found = (
        np.asarray(each.hidden_states(*inputs) if config.head == "none" else each(*inputs))
        for each in (model, again)
    )
    difference = float(np.abs(expected - found).max())
    if not difference <= CLOSE * max(1.0, float(np.abs(expected).max())):
        raise RunError(f"the export gives other logits than the model, by {difference:.2g}.")
    return difference


if __name__ == "__main__":
    cli.main(convert)
