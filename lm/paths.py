"""Paths of file systems and of buckets: gs:// and s3:// URLs are read with etils.epath and fsspec.

An object of a bucket appears when it is whole, and can be neither appended to nor renamed; nor are
there folders, only names with slashes. Keys, region and endpoint are found as the store's own tools
find them: AWS_ENDPOINT_URL, AWS_PROFILE, GOOGLE_APPLICATION_CREDENTIALS.
"""

import functools
import importlib.util
import os
import re
import shutil
import traceback
from pathlib import Path

from lm.errors import UserError, require

PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}  # the extras of these names install them


def is_url(path):
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fspath(path)))


def as_path(text, key="path"):
    """A pathlib.Path, or of a gs:// or s3:// URL an etils.epath.Path; of either kind too.

    Raises UserError, naming `key`, if a URL's scheme is not known, its package is not installed, or
    its bucket is not there, not ours to list, or not to be reached.
    """
    if not is_url(text):
        return Path(text).expanduser()
    url = os.fspath(text)
    scheme, _, rest = url.partition("://")
    require(
        scheme in PACKAGES,
        f"{key}={url} is a URL of a kind that lm does not read, as it does gs:// and s3://; mount "
        "what it names, and give the path where it is mounted.",
    )
    bucket = rest.partition("/")[0]
    require(bucket, f"{key}={url} names no bucket; write {scheme}://BUCKET/FOLDER.")
    require(
        importlib.util.find_spec(PACKAGES[scheme]),
        f"{key}={url} needs the package {PACKAGES[scheme]}: pip install 'lm[{scheme}]'.",
    )
    _check_bucket(url, key)
    from etils import epath

    return epath.Path(url)


@functools.cache
def _check_bucket(url, key):
    import fsspec

    # Others write to a bucket too, so no listing is remembered; and TensorFlow, which epath would
    # take where it is installed, reads no s3://.
    for scheme in ("gcs", *PACKAGES):
        fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    os.environ.setdefault("EPATH_USE_TF", "0")
    files, path = fsspec.url_to_fs(url)
    try:
        try:
            files.ls(path)
        except FileNotFoundError:  # of a folder to be made, or of its bucket
            files.ls(path.partition("/")[0])
    except Exception as error:
        reason = explain(error)
        if reason is None:
            raise
        raise UserError(f"{key}: {url}: {reason}") from error


def explain(error):
    """Why a bucket failed, and the remedy; None of an error that did not come from its client."""
    frames = traceback.walk_tb(error.__traceback__)
    modules = {frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames}
    if not modules & {*PACKAGES.values()}:
        return None
    text = " ".join(str(error).split())
    if isinstance(error, PermissionError) or "Forbidden" in text:
        return f"no rights there ({text}); check the keys, and what the bucket grants them."
    if isinstance(error, FileNotFoundError):
        return f"no such bucket or object ({text}); check the name, or create it."
    return f"the store fails ({text}); check the network, the keys and the endpoint."


@functools.cache
def s3_driver():
    """What tensorstore must know to read s3:// where and as s3fs does."""
    import fsspec

    meta = fsspec.filesystem("s3").s3.meta
    keys = "environment" if "AWS_ACCESS_KEY_ID" in os.environ else "default"
    driver = {
        "driver": "s3",
        "aws_credentials": {"type": keys},
        "s3_request_retries": {"max_retries": 6},
    }
    if "amazonaws.com" in meta.endpoint_url:  # there it asks for the bucket's own region
        return driver
    return driver | {"endpoint": meta.endpoint_url, "aws_region": meta.region_name or "us-east-1"}


def files_below(folder):
    """{path below the folder: what the store says of it, with "size" in bytes} of a URL."""
    import fsspec

    files, root = fsspec.url_to_fs(os.fspath(folder))
    found = files.find(root, detail=True)
    return {name.removeprefix(f"{root}/"): info for name, info in found.items()}


def write(path, content):
    """Write a str or bytes to a file: whoever looks at it never sees half of it."""
    content = content.encode() if isinstance(content, str) else content
    if is_url(path):
        path.write_bytes(content)
        return
    half = path.with_name(f"{path.name}.half")
    half.write_bytes(content)
    half.replace(path)


def remove(folder):
    """Remove a folder and all in it, if it is there."""
    if is_url(folder):
        folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
