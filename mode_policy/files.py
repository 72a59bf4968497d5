"""Atomic writes: a file or folder is either whole or absent, also after a crash or a full disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mode_policy.errors import ModePolicyError

#: Why a place cannot be written to, however often one tries.
_REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)


@contextmanager
def explain_failed_write(path: Path) -> Iterator[None]:
    """Turn a full disk, or a place that takes no files, into an error that names it and says what to do."""
    try:
        yield
    except OSError as error:
        # Some places refuse by "no such file", as /proc; elsewhere something that was to be read is missing.
        name = Path(str(error.filename)).name
        unmade = error.errno == errno.ENOENT and name.startswith(f".{path.stem}.partial")
        if error.errno in _REFUSED or unmade:
            raise ModePolicyError(
                f"cannot write {path}: {error.strerror} ({error.filename}); choose another place"
            ) from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(existing_parent(path)).free
        raise ModePolicyError(
            f"no space left while writing {path} ({free / 1e6:.0f} MB free); free some space, or choose "
            "another place with run_dir=… or dataset.path=… . What was complete before is untouched"
        ) from error


def existing_parent(path: Path) -> Path:
    """Return the closest ancestor of ``path`` that exists."""
    path = path.absolute()
    return next(p for p in [path, *path.parents] if p.exists())


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a path to write to; on success the file there becomes ``path``, on any error it is removed.

    The temporary file is a hidden neighbour of ``path`` (a rename is atomic only within a file system) and
    keeps its suffix (encoders choose the format by it). Missing parent folders are made.

    Raises:
        ModePolicyError: if the disk is full, or the place takes no files.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    with explain_failed_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _sync(partial)  # the data must be on disk before the name points to it
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as f:
        os.fsync(f.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8 whatever the locale."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically, with sorted keys."""
    write_text(path, json.dumps(data, indent=1, sort_keys=True) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes ``path`` if the block succeeds.

    Raises:
        FileExistsError: if ``path`` exists; nothing is overwritten.
        ModePolicyError: if the disk is full, or the place takes no files.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    with explain_failed_write(path):
        partial.mkdir(parents=True)
        try:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    _sync(file)
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder and hold it against other processes until the block ends, or the process does.

    A folder in which nothing was written is removed again.

    Raises:
        ModePolicyError: if another process holds it, or it takes no files.
    """
    mark = folder / ".held"  # a record lock: not inherited by children, which may outlive us for a moment
    with explain_failed_write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = mark.open("w")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ModePolicyError(
                f"another process writes to {folder}; wait for it, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise  # those three: a file system without locks, where nothing can be held
        try:
            yield
        finally:
            with suppress(OSError):  # somebody else may have removed it
                if list(folder.iterdir()) == [mark]:
                    mark.unlink()
                    folder.rmdir()


def link_atomically(link: Path, target: Path) -> None:
    """Point the symbolic link ``link`` at its sibling ``target``, replacing an older link in one step."""
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)  # a copy that resolved the link
    partial = link.with_name(f".{link.name}.partial-{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target.name)
    os.replace(partial, link)


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
