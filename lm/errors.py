"""What a user did wrong is a UserError: one line that names the value, the rule and the remedy."""

import difflib
import importlib
import re
import typing


class UserError(ValueError):
    """Wrong input. Commands print it without a traceback and exit with 2."""


class RunError(RuntimeError):
    """A run that cannot go on (diverged, no good checkpoint). Commands print it and exit with 1."""


def require(condition, message):
    if not condition:
        raise UserError(message)


def did_you_mean(word, options):
    """' Did you mean X?' if one of the options is near, else ' One of: ...'."""
    near = difflib.get_close_matches(str(word), [str(option) for option in options], n=1)
    return f" Did you mean {near[0]!r}?" if near else f" One of: {', '.join(map(str, options))}."


def require_in(key, value, options):
    if value not in options:
        raise UserError(f"{key}={value!r} is not known.{did_you_mean(value, options)}")


# What a number of the configuration may be, by the words that say it, without what 0 means.
RANGES = {
    "1 or more": lambda value: value >= 1,
    "4 or more": lambda value: value >= 4,
    "0 or more": lambda value: value >= 0,
    "0 or 1": lambda value: value in (0, 1),
    "more than 0": lambda value: value > 0,
    "more than 1": lambda value: value > 1,
    "0, or more than 1": lambda value: value == 0 or value > 1,
    "in (0, 1)": lambda value: 0 < value < 1,
    "in (0, 1]": lambda value: 0 < value <= 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "from 2 to 128": lambda value: 2 <= value <= 128,
    "in [0, 2**31)": lambda value: 0 <= value < 2**31,
}
SET = object()  # any value but 0, False and ""


class Section:
    """A dataclass of keys. An annotation is a range of RANGES, or a tuple of options."""

    section = property(lambda self: type(self).__name__.removesuffix("Config").lower())

    def __post_init__(self):
        for key, hint in typing.get_type_hints(type(self), include_extras=True).items():
            name, value = f"{self.section}.{key}", getattr(self, key)
            for rule in getattr(hint, "__metadata__", ()):
                if not isinstance(rule, str):
                    require_in(name, value, rule)
                else:
                    holds = RANGES[re.sub(r" \([a-z ]+\)", "", rule)](value)
                    require(holds, f"{name}={value} is not possible; it must be {rule}.")
        self.check()

    def check(self):
        """Refuse what is wrong beyond single keys."""


def require_together(values, needs, section=""):
    """Refuse what lacks what it needs. values: {key: value}, of the section, "model." say.

    needs: rows of (keys between spaces, when, other key, allowed): where the value of one of the
    keys is among `when`, that of the other must be among `allowed`; either may be SET.
    """

    def among(value, options):
        return bool(value) if options is SET else value in options

    for keys, when, other, allowed in needs:
        for key in keys.split():
            needed = "" if allowed is SET else f"={' or '.join(map(repr, allowed))}"
            told = f"{section}{key}={values[key]!r} needs {section}{other}{needed}, and"
            told += f" {section}{other}={values[other]!r}; change one of the two."
            require(not among(values[key], when) or among(values[other], allowed), told)


def require_path(key, value):
    """Refuse a URL where only a file system will do; pathlib would make a folder named "gs:"."""
    told = f"{key}={value} is a URL, and this must be in a file system; mount it, and give"
    is_url = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value)
    require(not is_url, f"{told} the path where it is mounted, or another.")


def optional(package, key, extra):
    """A module that is only installed with an extra. Raises UserError: the key needs it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"{key} needs {package}: pip install -e '.[{extra}]'.") from None
