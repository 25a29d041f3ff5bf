"""Convert a run, or a model in Hugging Face's format, to Hugging Face's format.

    python -m experiments.convert --source=runs/a --target=exported [--step=100] [--family=gpt2]

The target gets config.json, safetensors and tokenizer.json, and appears only when all that was
written has been read again and is, bit for bit, the model. `lm.load` and transformers load it. The
other way needs no conversion: `lm.load` and every command that takes a model read such a folder.
"""

from pathlib import Path

from experiments import cli

flags = cli.Parser(__doc__, config="none")
flags.add_argument(
    "--source", required=True, metavar="FOLDER", help="a run's workdir, or a model's folder"
)
flags.add_argument("--target", required=True, metavar="FOLDER", help="the folder to make")
flags.add_argument("--step", type=int, metavar="N", help="a run's checkpoint; the newest without")
flags.add_argument("--family", metavar="NAME", help="as what; without, the first that fits")


def convert(argv):
    arguments = flags.parse(argv)
    from lm.hub.convert import export_model
    from lm.model import load
    from lm.nn.params import count_parameters

    model = load(arguments.source, arguments.step)
    family = export_model(model, arguments.target, arguments.family)
    files = sorted(path.name for path in Path(arguments.target).expanduser().iterdir())
    count = f"{count_parameters(model.module):,} parameters, {model.config.param_dtype}"
    print(f"{arguments.target}: a {family} of {count}, equal to the bit: {', '.join(files)}.")


if __name__ == "__main__":
    cli.main(convert)
