"""Paths of file systems, and of buckets: gs:// and s3://, through etils.epath and fsspec.

An object of a bucket appears when it is whole, and can be neither appended to nor renamed. Keys,
region and endpoint (AWS_ENDPOINT_URL) are found as the store's own tools find them.
"""

import contextlib
import fcntl
import functools
import logging
import os
import re
import shutil
import traceback
from pathlib import Path

from lm.errors import RunError, UserError, optional, require

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # the extras of these names install them
NO_KEYS = ("Anonymous caller", "Unable to locate credentials")  # Google's words, and Amazon's


def is_url(path):
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fspath(path)))


def as_path(text, key="path"):
    """A pathlib.Path, or an etils.epath.Path of a gs:// or s3:// URL; `text` may be either too.

    Raises UserError, naming `key`, for other URLs, and if the package or the bucket is not there.
    """
    if not is_url(text):
        return Path(text).expanduser()
    url = os.fspath(text)
    scheme, _, rest = url.partition("://")
    known = f"{key}={url} is a URL that lm does not read, as it does gs://BUCKET and s3://BUCKET; "
    require(scheme in PACKAGES and rest.strip("/"), f"{known}mount it, and give that path.")
    optional(PACKAGES[scheme], f"{key}={url}", scheme)
    _check(url, key)
    from etils import epath

    return epath.Path(url)


@functools.cache
def _check(url, key):
    import fsspec
    from fsspec.config import conf

    for name in ("gcs", *PACKAGES):  # others write there too: no listing is remembered
        conf.setdefault(name, {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what matters it also raises
    os.environ["EPATH_USE_TF"] = "0"  # TensorFlow, where it is installed, reads no s3://
    files, path = fsspec.url_to_fs(url)
    with explained(f"{key}={url}"):
        try:
            files.ls(path)
        except FileNotFoundError:  # of a folder that is yet to be made, or of its bucket
            files.ls(path.partition("/")[0])


def explain(error, what="a bucket"):
    """The UserError or RunError of what a bucket's client raised; None of what it did not raise."""
    frames = traceback.walk_tb(error.__traceback__)
    modules = {frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames}
    if not modules & {*PACKAGES.values()}:
        return None
    if any(words in str(error) for words in NO_KEYS):
        remedy = "AWS_SECRET_ACCESS_KEY, or run `gcloud auth application-default login`"
        told = f"{what}: no credentials are found ({error}); set AWS_ACCESS_KEY_ID and"
        return UserError(f"{told} {remedy}.")
    if isinstance(error, PermissionError) or "Forbidden" in str(error):
        return UserError(f"{what}: no rights there ({error}); check the keys and their policy.")
    if isinstance(error, FileNotFoundError):
        return UserError(f"{what}: not there ({error}); check the bucket's name, or create it.")
    return RunError(f"{what}: the store fails ({error}); check network, keys and endpoint.")


@contextlib.contextmanager
def explained(what):
    """Raise what `explain` makes of an error."""
    try:
        yield
    except Exception as error:
        if known := explain(error, what):
            raise known from error
        raise


def files_below(folder):
    """{path below the folder: what the store says of it, with "size" in bytes} of a URL."""
    import fsspec

    files, root = fsspec.url_to_fs(os.fspath(folder))
    found = files.find(root, detail=True).items()
    return {name.removeprefix(f"{root}/"): info for name, info in found}


def write(path, content):
    """Write a str or bytes to a file: whoever looks at it never sees half of it."""
    half = path if is_url(path) else path.with_name(f"{path.name}.half")
    with explained(path), half.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if half != path:
            file.flush()
            os.fsync(file.fileno())
    if half != path:
        half.replace(path)


def remove(folder):
    """Remove a folder and all in it, if it is there."""
    if is_url(folder):
        folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def alone(folder, told="another process trains in"):
    """Make a folder, and hold it: of two runs at once each would remove what the other saves."""
    if is_url(folder):  # a bucket has no lock that a killed run would let go
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{told} {folder}; wait for it, or give another --workdir.") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(held)
