"""A cache of folders, each built once and named by the hash of what it is made from.

A folder is built under another name and renamed when it is whole, so a process that dies leaves
nothing that another takes for done. A lock keeps processes of one machine from building it twice.
What is in a bucket, for all machines, is copied to or from this machine's cache, whole, once.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import uuid
from pathlib import Path

from lm.errors import RunError, UserError
from lm.paths import as_path, explained, is_url

META = "meta.json"
HOME = "~/.cache/lm"
MEBIBYTE = 1 << 20
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def cache_root(name):
    """The cache's folder: data.cache, or else $LM_CACHE, or else ~/.cache/lm."""
    folder = name or os.environ.get("LM_CACHE") or HOME
    return as_path(folder, "data.cache" if name else "LM_CACHE")


def local(folder):
    """A folder of the cache; of one in a bucket, its copy on this machine, which can be mapped."""
    home = os.environ.get("LM_CACHE") or HOME
    home = Path(HOME if is_url(home) else home).expanduser()
    return home.joinpath(*folder.parts[1:]) if is_url(folder) else folder


def hash_of(value):
    """Hexadecimal hash of anything that JSON can spell."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def report(line):
    """One line for whoever waits."""
    print(line, file=sys.stderr, flush=True)


def published(folder, build):
    """The information that belongs to a folder of the cache: whatever JSON can spell. If the folder
    is missing or damaged, build(empty folder) fills it and returns the information. Raises RunError
    on a full disk, UserError where it cannot write; neither leaves anything behind.
    """
    if is_url(folder):
        with explained(folder):
            return published(local(folder), lambda empty: _shared(folder, empty, build))
    try:
        if meta := _read(folder):
            return meta["info"]
        with _locked(folder) as locked:
            if meta := _read(folder):  # another process has built it meanwhile
                return meta["info"]
            if folder.exists():
                report(f"{folder} is damaged; it is built again.")
            ours = f"{folder.name}.{platform.node()}."
            if locked:  # then these are of dead processes
                for dead in folder.parent.glob(f"{ours}*"):
                    shutil.rmtree(dead)
            temporary = folder.with_name(ours + uuid.uuid4().hex)
            temporary.mkdir()
            try:
                info = build(temporary)
                _seal(temporary, info)
                if folder.exists() and not _read(folder):
                    damaged = temporary.with_name(f"{temporary.name}.damaged")
                    folder.rename(damaged)
                    shutil.rmtree(damaged)
                temporary.rename(folder)
            except OSError as error:
                # Without locks another process may have been faster; its folder is the same.
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not _read(folder):
                    raise
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            return info
    except OSError as error:
        remedy = "or set data.cache or LM_CACHE to another folder."
        if error.errno in NO_SPACE:
            reason = f"no space is left for {folder} ({error.strerror}); free some,"
            raise RunError(f"{reason} {remedy}") from None
        if error.errno in NO_ACCESS:
            reason = f"{folder} cannot be written ({error.strerror}); make it writable,"
            raise UserError(f"{reason} {remedy}") from None
        raise


def _shared(url, empty, build):
    """Fills an empty folder with what is at url, or builds it and puts it there, META last."""
    import fsspec

    files, root = fsspec.url_to_fs(os.fspath(url))
    if files.exists(f"{root}/{META}"):
        files.get(f"{root}/", f"{empty}/", recursive=True)
        if meta := _read(empty):
            return meta["info"]
        report(f"{url} is damaged; it is built again.")
    info = build(empty)
    _seal(empty, info)
    for path in sorted(empty.iterdir(), key=lambda path: path.name == META):
        files.put_file(os.fspath(path), f"{root}/{path.name}")
    return info


def _read(folder):
    """What META says of a whole folder; None if it is missing or damaged."""
    try:
        meta = json.loads((folder / META).read_text())
        checksum = meta.pop("checksum")
        if checksum == hash_of(meta) and meta["files"] == _files(folder):
            return meta
    except (FileNotFoundError, ValueError, KeyError, AttributeError):  # no META, or not ours
        pass
    return None


def _files(folder):
    """{name: [bytes, hash]}; the hash is of 64 mebibytes, evenly spread if the file has more."""
    files = {}
    for path in sorted(set(folder.iterdir()) - {folder / META}):
        size, digest = path.stat().st_size, hashlib.blake2b(digest_size=16)
        with open(path, "rb") as file:
            for start in range(0, size, max(MEBIBYTE, size // 64)):
                file.seek(start)
                digest.update(file.read(MEBIBYTE))
        files[path.name] = [size, digest.hexdigest()]
    return files


def _seal(folder, info):
    """Writes META, and waits until all is on the disk."""
    meta = {"info": info, "files": _files(folder)}
    (folder / META).write_text(json.dumps({"checksum": hash_of(meta), **meta}, indent=1))
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


@contextlib.contextmanager
def _locked(folder):
    """Waits for the folder's lock, which the kernel takes from the dead; False if locks fail."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "a") as file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"another process builds {folder}; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            locked = False
        yield locked
