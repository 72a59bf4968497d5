"""Where a store's files are: a local folder, or an address that `fsspec` opens (``s3://``, ``https://``)."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import fsspec
import zarr.storage

from mode_policy.errors import ConfigError, DataError

#: Kinds of addresses that `obstore` serves; it finds credentials in the environment (``AWS_…``).
OBJECT_STORES = ("s3", "s3a", "gs", "az", "abfs")


class Handle(Protocol):
    """One open file; a file that is replaced meanwhile is still read as it was when it was opened."""

    size: int

    def close(self) -> None:
        """Release it."""
        ...


class Location(Protocol):
    """The files of one store, for reading.

    Attributes:
        fork_safe: Whether a process that was forked can go on reading; connections' threads do not survive
            that.
    """

    fork_safe: bool

    @property
    def name(self) -> str:
        """Last part of the path or address."""
        ...

    def zarr_store(self) -> zarr.storage.StoreLike:
        """Return what zarr opens."""
        ...

    def exists(self, file: str = "") -> bool:
        """Whether a file (or, without a name, the store) is there."""
        ...

    def open(self, file: str) -> Handle:
        """Open a file.

        Raises:
            FileNotFoundError: if it is absent.
        """
        ...

    def read(self, wanted: Sequence[tuple[Any, int, int]]) -> Iterator[bytes]:
        """Read ranges ``(handle, start, length)``; a range past the end of its file comes back short."""
        ...


def locate(path: Path | str | Location) -> Location:
    """Return the location behind a path or an address such as ``s3://bucket/pusht.zarr``.

    Raises:
        ConfigError: if no package serves this kind of address, or it is not installed.
    """
    if not isinstance(path, Path | str):
        return path
    if "://" not in str(path):
        return LocalFolder(Path(path))
    try:
        return RemoteFolder(str(path))
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be opened: {error}. Install it with: pip install 'mode-policy[remote]'"
        ) from error


class _LocalFile:
    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self.descriptor).st_size
        self.close = weakref.finalize(self, os.close, self.descriptor)  # at the latest when it is dropped


class LocalFolder:
    """A folder of this machine."""

    fork_safe = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.name

    def zarr_store(self) -> zarr.storage.StoreLike:
        """Return the path."""
        return str(self.path)

    def exists(self, file: str = "") -> bool:
        """Whether a file (or, without a name, the folder) is there."""
        return (self.path / file).exists()

    def open(self, file: str) -> _LocalFile:
        """Open a file."""
        return _LocalFile(self.path / file)

    def read(self, wanted: Sequence[tuple[_LocalFile, int, int]]) -> Iterator[bytes]:
        """Read ranges one by one, so that each is decoded while it is in the processor's cache.

        ``pread`` moves no file position: forked readers may share a descriptor.
        """
        return (os.pread(handle.descriptor, length, start) for handle, start, length in wanted)


class _RemoteFile:
    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size

    def close(self) -> None:
        pass


class RemoteFolder:
    """An address of an object store or a web server; ranges of several files are fetched at once."""

    fork_safe = False

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        protocol = self.url.partition("://")[0]
        if protocol in OBJECT_STORES:
            from obstore.fsspec import register

            register(protocol)
        self.files, self.root = fsspec.core.url_to_fs(self.url)

    def __reduce__(self) -> tuple[type[RemoteFolder], tuple[str]]:
        """Another process makes connections of its own."""
        return RemoteFolder, (self.url,)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self.url.rsplit("/", 1)[-1]

    def zarr_store(self) -> zarr.storage.StoreLike:
        """Return a read-only store over the address."""
        if self.url.partition("://")[0] in OBJECT_STORES:
            # Its adapter to fsspec does not know the ranges from a file's end, which a shard's index needs.
            from obstore.store import from_url

            return zarr.storage.ObjectStore(from_url(self.url), read_only=True)
        return zarr.storage.FsspecStore.from_url(self.url, read_only=True)

    def exists(self, file: str = "") -> bool:
        """Whether a file is there; a store is there if its metadata are (web servers know no folders)."""
        names = [file] if file else ["zarr.json", ".zgroup"]
        return any(bool(self.files.exists(f"{self.root}/{name}")) for name in names)

    def open(self, file: str) -> _RemoteFile:
        """Look a file up."""
        path = f"{self.root}/{file}"
        size = self.files.info(path)["size"]
        if size is None:
            raise DataError(f"{path}: the server does not tell its size; copy the store to a disk")
        return _RemoteFile(path, size)

    def read(self, wanted: Sequence[tuple[_RemoteFile, int, int]]) -> Iterator[bytes]:
        """Fetch ranges, several at once."""
        if not wanted:
            return iter(())
        paths = [handle.path for handle, _, _ in wanted]
        starts = [start for _, start, _ in wanted]
        ends = [start + length for _, start, length in wanted]
        return (bytes(part) for part in self.files.cat_ranges(paths, starts, ends, on_error="raise"))
