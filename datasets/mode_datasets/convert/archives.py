"""Zip archives, read with suspicion: names that leave the folder, links and bombs are refused at once."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import zarr.storage

from mode_policy.errors import DataError
from mode_policy.files import atomic_folder

#: A member that would grow by more than this is taken for a bomb; arrays of one value reach about a thousand.
MAX_RATIO = 2000

#: Members of one archive, at most.
MAX_MEMBERS = 2_000_000


def check_members(archive: zipfile.ZipFile, limit: int, ratio: float = MAX_RATIO) -> int:
    """Check all members by what the archive declares of them.

    Args:
        archive: An open archive.
        limit: Bytes that all members together may take.
        ratio: How many times its compressed size a member may take.

    Returns:
        Bytes that they declare.

    Raises:
        DataError: naming the first member that is not acceptable.
    """
    members = archive.infolist()
    where = archive.filename
    if len(members) > MAX_MEMBERS:
        raise DataError(
            f"{where} declares {len(members)} members, more than {MAX_MEMBERS}; unpack it by hand"
        )
    seen: set[str] = set()
    total = 0
    for member in members:
        path = PurePosixPath(member.filename)
        unsafe = path.is_absolute() or ".." in path.parts or "\\" in member.filename or not path.parts
        if unsafe or path.parts[0][1:2] == ":":
            raise DataError(
                f"member {member.filename!r} of {where} would leave its folder; the archive is not trusted"
            )
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(
                f"member {member.filename!r} of {where} is a link or device; the archive is not trusted"
            )
        if member.filename in seen:
            raise DataError(f"{where} holds {member.filename!r} twice; the archive is not trusted")
        seen.add(member.filename)
        total += member.file_size
        if total > limit:
            raise DataError(
                f"{where} declares more than {limit / 2**30:.3g} GiB unpacked, which is the most expected of "
                "it; it is not unpacked"
            )
        if member.file_size > 2**20 and member.file_size > ratio * max(1, member.compress_size):
            raise DataError(
                f"member {member.filename!r} of {where} declares {member.file_size} bytes from "
                f"{member.compress_size}; that is taken for a decompression bomb"
            )
    return total


def unpack(
    path: Path, folder: Path, *, limit: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Unpack an archive into a new folder, which appears whole or not at all.

    Args:
        path: The archive.
        folder: To make.
        limit: Bytes that it may take.
        progress: Called with bytes done and bytes in all.

    Raises:
        DataError: if the archive is damaged or not acceptable.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = check_members(archive, limit)
            free = shutil.disk_usage(folder.parent if folder.parent.exists() else path.parent).free
            if total > free:
                raise DataError(
                    f"{path} needs {total / 2**20:.0f} MiB unpacked, and {free / 2**20:.0f} MiB are free; "
                    "free space, or choose another folder"
                )
            with atomic_folder(folder) as partial:
                done = 0
                for member in archive.infolist():
                    archive.extract(member, partial)  # reads at most the declared size, and checks the CRC
                    done += member.file_size
                    progress(done, total)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be unpacked to {folder}: {error.strerror or error}") from error
    except Exception as error:  # unpacking raises whatever it likes
        raise DataError(f"{path} is damaged or cut short ({error}); download or copy it again") from error


@dataclass
class _Member:
    name: str
    size: int

    def close(self) -> None:
        pass


class ZipLocation:
    """A zarr store at the top of a zip archive, as `mode_datasets.location.Location`; nothing is unpacked to
    disk.

    Args:
        path: The archive.
        limit: Bytes that all members together may declare.

    Raises:
        DataError: if it is damaged or not acceptable, or the store is not at its top.
    """

    fork_safe = True

    def __init__(self, path: Path, limit: int = 2**42) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                check_members(archive, limit)
                self._sizes = {member.filename: member.file_size for member in archive.infolist()}
        except DataError:
            raise
        except Exception as error:  # damaged archives fail in any way
            raise DataError(
                f"{path} is no zip archive, or cut short ({error}); download or copy it again"
            ) from error
        if not {".zgroup", "zarr.json"} & set(self._sizes):
            raise DataError(
                f"{path} has no zarr store at its top; unpack it, and convert the folder with .zgroup"
            )

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.name

    def zarr_store(self) -> zarr.storage.StoreLike:
        """Return a read-only store over the archive."""
        return zarr.storage.ZipStore(self.path, mode="r")

    def exists(self, file: str = "") -> bool:
        """Whether a member (or, without a name, the archive) is there."""
        return not file or file in self._sizes

    def arrays(self) -> list[str]:
        """List the arrays of the store, such as ``data/action``."""
        return sorted(name.removesuffix("/.zarray") for name in self._sizes if name.endswith("/.zarray"))

    def open(self, file: str) -> _Member:
        """Look a member up.

        Raises:
            FileNotFoundError: if it is absent.
        """
        if file not in self._sizes:
            raise FileNotFoundError(file)
        return _Member(file, self._sizes[file])

    def read(self, wanted: Sequence[tuple[Any, int, int]]) -> Iterator[bytes]:
        """Read ranges of members."""
        with zipfile.ZipFile(self.path) as archive:
            for member, start, length in wanted:
                yield archive.read(member.name)[start : start + length]
