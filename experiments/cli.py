"""What every command shares: its flags, its configuration, and how it ends.

    flags = cli.Parser(__doc__)
    flags.add_argument("--workdir", required=True, metavar="FOLDER", help="where the run is kept")

    def train(argv):
        arguments = flags.parse(argv)
        config = lm.config.resolve(arguments.config, tokenizer_size)
        print(cli.describe(config))

    if __name__ == "__main__":
        cli.main(train)

ml_collections.config_flags reads the same flags, but there a missing file or an unknown key ends in
a traceback of 50 lines, and a key given twice with two values passes in silence.
"""

import argparse
import dataclasses
import difflib
import errno
import math
import os
import re
import runpy
import shutil
import sys
import textwrap
import traceback
from pathlib import Path

from ml_collections import ConfigDict

from lm.config import flatten
from lm.errors import RunError, UserError, did_you_mean, require
from lm.paths import as_path, explain, is_url

ROOT = Path(__file__).resolve().parent.parent

EPILOG = """\
--config=FILE:PRESET is a Python file and one of its presets; without :PRESET it is the first.
--config.SECTION.KEY=VALUE changes a key; configs/base.py lists and explains them all. `none` has
the key derived from the others, and 1e6 is an integer too.
LM_TRACEBACK=1 in the environment shows where an error arose.
"""


class Parser(argparse.ArgumentParser):
    """argparse with `--config` and `--config.section.key`, and with UserError for every mistake.

    config: whether the command takes a configuration: "required", "optional" or "none".
    """

    def __init__(self, description, config="required"):
        super().__init__(
            prog=f"python -m experiments.{Path(sys.argv[0]).stem}",
            description=description,
            epilog=None if config == "none" else EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.takes_config = config != "none"
        if self.takes_config:
            told = "the configuration, for example configs/gpt2.py:small"
            required = config == "required"
            self.add_argument("--config", metavar="FILE:PRESET", required=required, help=told)

    def error(self, message):
        if wrong := re.fullmatch(r"argument (\S+): invalid (int|float) value: '(.*)'", message):
            name, kind, text = wrong.groups()
            raise UserError(f"{name}={text} must be a {'whole ' * (kind == 'int')}number.")
        raise UserError(message.removeprefix("argument ") + ".")

    def parse(self, argv):
        """The flags as an argparse.Namespace; `config` in it is a locked ConfigDict, or None, and
        `spec` and `keys` what it was made of: FILE:PRESET, and {key: text}.

        Both --flag=value and --flag value are read. A flag that is unknown, misses its value, or is
        given twice with two values is a UserError; one of action="append" may be given often.
        """
        given = self._read(argv)
        for action in self._actions:
            name = action.option_strings[-1]
            missing = action.required and name not in given
            require(not missing, f"{name}={action.metavar} is missing: {action.help}.")
        keys = {name: given.pop(name)[0] for name in [*given] if name.startswith("--config.")}
        flags = [(name, text) for name in given for text in given[name]]
        arguments = self.parse_args([n if text is None else f"{n}={text}" for n, text in flags])
        if self.takes_config and arguments.config is not None:
            arguments.spec = arguments.config
            arguments.keys = {name.removeprefix("--config."): text for name, text in keys.items()}
            arguments.config = load_config(arguments.spec, arguments.keys)
        else:
            require(not keys, f"{next(iter(keys), '')} needs --config=FILE:PRESET too.")
        return arguments

    def _read(self, argv):
        """{name: its values as text, or [None] of a flag without}"""
        known = {name: action for action in self._actions for name in action.option_strings}
        given, tokens = {}, iter(argv)
        for token in tokens:
            name, equals, text = token.partition("=")
            if name in ("-h", "--help"):
                self.print_help()
                sys.exit(0)
            action = known.get(name)
            if action is None and not (self.takes_config and name.startswith("--config.")):
                self._refuse(token, name, list(known))
            if action is not None and action.nargs == 0:
                require(not equals, f"{token}: {name} takes no value.")
                text = None
            elif not equals:
                text, value = next(tokens, "--"), getattr(action, "metavar", None) or "VALUE"
                require(not text.startswith("--"), f"{name} needs a value: {name}={value}.")
            texts = given.setdefault(name, [])
            if isinstance(action, argparse._AppendAction) or not texts:
                texts.append(text)
            twice = f"{name} is given twice, as {texts[0]!r} and {text!r}; give it once."
            require(text in texts, twice)
        return given

    def _refuse(self, token, name, known):
        require(name.startswith("-"), f"{token!r} is not a flag; flags are --name=value.")
        keys = []
        if self.takes_config:
            from configs.base import base

            keys = [f"--config.{key}" for key in flatten(base().to_dict())]
        flags = [flag for flag in known if flag.startswith("--") and flag != "--help"]
        raise UserError(f"{name} is not a flag.{_hint(name, [*flags, *keys], flags)}")


def load_config(spec, overrides):
    """The locked ConfigDict of a preset, "FILE:PRESET", with {"section.key": text} changed in it.

    FILE is looked for in the current folder, then in the repository. The text is read as the type
    that the key has: an int may be written 1e6, and `none` is None where a number stood.
    Raises UserError, one line, for whatever is wrong with any of them.
    """
    path, _, preset = spec.partition(":")

    def made(names):
        require("get_config" in names, "it has no function get_config, so it is no preset file.")
        return names["get_config"](*([preset] if preset else []))

    config = read_python(f"--config={spec}", path, "configs", made)
    told = f"--config={spec}: get_config must return a ConfigDict, not {type(config).__name__}."
    require(isinstance(config, ConfigDict), told)
    config.unlock()
    keys = list(flatten(config.to_dict()))
    for key, text in overrides.items():
        flag = f"--config.{key}={text}"
        if key not in keys:
            _refuse_key(flag, key, keys)
        name, _, leaf = key.rpartition(".")
        section = config[name]
        section[leaf] = _value(flag, text, section.get_type(leaf), section[leaf])
    return config.lock()


def _refuse_key(flag, key, keys):
    inside = [name for name in keys if name.startswith(f"{key}.")]
    require(not inside, f"{flag}: {key} is a section; set one of its keys: {', '.join(inside)}.")
    section = key.split(".")[0]
    near = [name for name in keys if name.startswith(f"{section}.")]
    sections = list(dict.fromkeys(name.split(".")[0] for name in keys))
    raise UserError(f"{flag}: there is no key {key!r}.{_hint(key, keys, near or sections)}")


def _hint(word, options, listed):
    """' Did you mean ...?': options of the same last name, or the nearest; else what is listed."""
    last = word.rpartition(".")[2].lstrip("-")
    near = [option for option in options if option.rpartition(".")[2].lstrip("-") == last]
    near = near or difflib.get_close_matches(word, options, n=1)
    return f" Did you mean {' or '.join(near)}?" if near else f" One of: {', '.join(listed)}."


def _value(flag, text, kind, current):
    """The text of a flag as a value of `kind`, the type that the key has."""
    example = "" if current is None else f", as the preset's {current!r} is"
    wrong = f"{flag}: it must be of type {kind.__name__}{example}."
    if kind is str:
        return text
    if kind is bool:
        require(text.lower() in ("true", "false"), f"{flag}: it must be true or false.")
        return text.lower() == "true"
    require(kind in (int, float), f"{flag}: a key of type {kind.__name__} has no flag.")
    if text.lower() == "none":
        return None
    try:
        number = float(text)
        whole = int(text) if text.lstrip("+-").replace("_", "").isdigit() else number
    except ValueError:
        raise UserError(wrong) from None
    require(math.isfinite(number), f"{flag}: it must be a finite number.")
    if kind is float:
        return number
    require(whole == int(whole), wrong)
    return int(whole)


def read_python(flag, path, folder, use):
    """use({name: value}) of what a Python file defines, looked for here and in the repository.

    folder: of the repository, whose files are proposed. Raises UserError, that begins with `flag`,
    for what is wrong in the file.
    """
    file = next((file for file in (Path.cwd() / path, ROOT / path) if file.is_file()), None)
    if file is None:
        files = sorted((ROOT / folder).glob("[a-z]*.py"))
        hint = did_you_mean(path, [file.relative_to(ROOT).as_posix() for file in files])
        raise UserError(f"{flag}: there is no file {path!r}.{hint}")
    require(file.suffix == ".py", f"{flag}: {path} is not a Python file, FILE.py.")
    try:
        return use(runpy.run_path(str(file)))
    except Exception as error:  # whatever a file that a user wrote can raise
        raise UserError(f"{flag}: {_blame(error, file)}") from error


def _blame(error, file):
    """Where in the file the error arose, and what it is."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == file]
    if isinstance(error, SyntaxError) and Path(error.filename or "") == file:
        lines, text = [error.lineno], error.msg
    else:
        text = _one_line(error)
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"line {lines[-1]}: {kind}{text}" if lines else text


def describe(config):
    """A resolved Config as text: a paragraph for each section."""
    width, lines = min(100, shutil.get_terminal_size((100, 24)).columns), []
    how: dict = {
        "break_long_words": False,
        "break_on_hyphens": False,
        "subsequent_indent": " " * 12,
    }
    for section, values in dataclasses.asdict(config).items():
        words = (f"{key}={value if value != '' else repr('')}" for key, value in values.items())
        lines.append(textwrap.fill(f"{section:12}{' '.join(words)}", width, **how))
    return "\n".join(lines)


def text_of(report, inside=""):
    """A report, {name: number, text, list or such a report}, to be read by people."""
    lines = []
    for name, value in report.items():
        bare, is_bytes = name.replace("_", " "), "bytes" in inside + name or "memory" in name
        if name == "mesh":
            lines.append(f"mesh {' '.join(f'{axis}={size}' for axis, size in value.items())}")
        elif isinstance(value, dict):
            lines += [bare, textwrap.indent(text_of(value, inside + name), "  ")]
        else:
            if isinstance(value, list):
                value = ", ".join(map(str, value)) or "none"
            elif isinstance(value, int | float) and not isinstance(value, bool):
                form = ".4g" if isinstance(value, float) or value >= 10**12 else ","
                value = readable_bytes(value) if is_bytes else f"{value:{form}}"
            lines.append(f"{bare:32}{value!s:>20}")
    return "\n".join(lines)


def readable_bytes(size):
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min(len(units) - 1, int(math.log(max(size, 1), 1024)))
    return f"{size / 1024**power:.4g} {units[power]}"


def find_runs(paths):
    """The runs in folders, of which each is a run's or has them two folders deep, as one of sweeps
    has. What is in a run's folder is no run.
    """

    def below(folder, deep):
        if (folder / "config.json").is_file():
            return [folder]
        inside = sorted(folder.iterdir()) if deep and folder.is_dir() else []
        return [run for path in inside for run in below(path, deep - 1)]

    found = []
    for path in paths:
        folder = as_path(path, "--runs")
        require(folder.is_dir(), f"--runs={path} is no folder; give a run's workdir.")
        inside = below(folder, 2)
        told = f"--runs={path} holds no run, nor do the folders in it: a run has a config.json"
        require(inside, f"{told}; give a run's workdir, or a folder of runs.")
        found += inside
    return list(dict.fromkeys(found))


def require_folder_of(flag, path):
    """Refuse a file where there is no folder for it; a bucket has none."""
    folder = Path(path).expanduser().absolute().parent
    told = f"{flag}={path}: there is no folder {folder}; make it."
    require(is_url(path) or folder.is_dir(), told)
    require(is_url(path) or not Path(path).is_dir(), f"{flag}={path} is a folder; give a file.")


def main(command):
    """Run command(argv) as this process: exit with 0, or with one line on stderr and a status.

    2: the user's mistake (UserError); 1: the run cannot go on (RunError), or the machine fails it;
    130: interrupted; 75: start it again (lm.cluster.processes.RESTART). What is none of these is a
    bug in our code, and its traceback stays.
    """
    sys.exit(_status(command, sys.argv[1:]))


def _status(command, argv):
    try:
        command(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does; Python must not find that out again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        error = explain(error) or error
        if isinstance(error, UserError | RunError):
            return _end(error, 2 if isinstance(error, UserError) else 1)
        line = _explain(error)
        if line is None:
            raise
        return _end(f"{line.rstrip()} (LM_TRACEBACK=1 shows where.)", 1)
    return 0


def _end(error, status):
    if os.environ.get("LM_TRACEBACK") == "1":
        traceback.print_exc()
    print(f"error: {_one_line(error)}", file=sys.stderr)
    return status


def _one_line(error):
    return " ".join(str(error).split())


SPACE = "free some space or quota there, or give a path on another disk"
REMEDIES = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EEXIST: "give another path, or move what is there",
    errno.EISDIR: "give a file",
    errno.EMFILE: "raise the limit with `ulimit -n`",
    errno.ENOTDIR: "a file stands where the path needs a folder; give another path",
}
OTHERWISE = "check the path, its owner and mode, or give another"


def _explain(error):
    """What the machine or its set-up did, with a remedy; None if it may be a bug of ours."""
    text = _one_line(error)
    if isinstance(error, MemoryError):
        return f"the memory of this machine is used up. {text}"
    if isinstance(error, OSError) and error.errno is not None:
        path = f"{error.filename}: " if error.filename else ""
        return f"{path}{error.strerror}; {REMEDIES.get(error.errno, OTHERWISE)}."
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in text:
        remedy = "Make data.batch_size smaller or train.accumulation_steps larger, set model.remat="
        remedy += "full or objective.logits_chunk, or divide the weights with mesh.fsdp."
        return f"the memory of a device is used up: {text[:200]} {remedy}"
    # jax says so in words, or by a bare assertion where the platform's plugin is not installed.
    lost = text.startswith(("Unable to initialize backend", "Unknown backend"))
    frames = traceback.extract_tb(error.__traceback__)
    if lost or (isinstance(error, AssertionError) and "xla_bridge" in frames[-1].filename):
        wanted = os.environ.get("JAX_PLATFORMS", "")
        told = f"jax cannot use the platform that JAX_PLATFORMS={wanted!r} asks for; unset it, or "
        return f"{told}install the device's extra, pip install -e '.[gpu]' or '.[tpu]'. {text}"
    return None
