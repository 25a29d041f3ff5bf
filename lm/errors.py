"""What a user did wrong is a UserError: one line that names the value, the rule and the remedy."""

import difflib
import re


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


def require_path(key, value):
    """Refuse a URL where only a file system will do; pathlib would make a folder named "gs:"."""
    require(
        not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value),
        f"{key}={value} is a URL, and this must be in a file system; mount what it names, and give "
        "the path where it is mounted, or another.",
    )
