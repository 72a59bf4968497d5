"""Where demonstrations of any format go."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from mode_datasets.convert.description import Description
from mode_datasets.convert.source import KeyMap
from mode_datasets.schema import Provenance
from mode_policy.convention import Convention
from mode_policy.errors import DataError
from mode_policy.files import existing_parent
from mode_policy.types import Episode, Features, Task


class Sink(Protocol):
    """Takes episodes one by one; what it writes appears at its path when the ``with`` block ends well.

    `mode_datasets.StoreWriter` is one.
    """

    @property
    def num_episodes(self) -> int:
        """Episodes so far, those of an interrupted run included."""
        ...

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks so far, those of an interrupted run included."""
        ...

    def __enter__(self) -> Self:
        """Begin, or go on where an interrupted run stopped."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete what was written, or keep or remove it after an exception."""
        ...

    def append(self, episode: Episode) -> None:
        """Write one episode."""
        ...

    def commit(self) -> None:
        """Make sure that the episodes so far survive a kill, where the format allows it."""
        ...


@dataclass(frozen=True, kw_only=True)
class SinkOptions:
    """How demonstrations are written, whatever the format.

    Attributes:
        features: What each step holds.
        convention: What the numbers mean.
        provenance: Where the demonstrations come from.
        overwrite: Replace what is at the path, once the new data are complete.
    """

    features: Features
    convention: Convention
    provenance: Provenance
    overwrite: bool = False


class PartialSink(ABC):
    """A sink that writes to a hidden sibling, ``.<name>.partial``, and renames it when all is well.

    Args:
        path: File or folder to make.
        options: How.
        format: Name of the format; only data of the same format are replaced.

    Raises:
        DataError: if something is at the path that may not be replaced.
    """

    #: Whether an interrupted run can be continued; otherwise its remains are removed.
    resumable = False

    def __init__(self, path: Path, options: SinkOptions, format: str) -> None:
        self.path = path.absolute()
        self.partial = partial_path(self.path)
        self.options = options
        self._format = format
        self._tasks: dict[str, Task] = {}
        self._episodes = 0
        self._check_free_path()

    @property
    def num_episodes(self) -> int:
        """Episodes so far, those of an interrupted run included."""
        return self._episodes

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks so far, those of an interrupted run included."""
        return tuple(self._tasks.values())

    def __enter__(self) -> Self:
        if not self.resumable:
            remove(self.partial)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._begin()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if not self._episodes:
                    raise DataError(f"no episodes were written to {self.path}; there is nothing to store")
                self._complete()
                self._publish()
        except OSError as failure:
            raise self._cannot_write(failure) from failure
        finally:
            self._leave()
        if isinstance(error, OSError):
            raise self._cannot_write(error) from error

    def append(self, episode: Episode) -> None:
        """Write one episode.

        Raises:
            DataError: if writing fails.
        """
        self._tasks.setdefault(episode.task.name, episode.task)
        try:
            self._write(episode)
        except OSError as error:
            raise self._cannot_write(error) from error
        self._episodes += 1

    def commit(self) -> None:
        """Make sure that the episodes so far survive a kill; nothing where a format cannot be continued."""
        return

    def describe(self, keys: KeyMap) -> str:
        """Return what is written beside the data, so that nothing is lost when they are read back.

        Args:
            keys: Which arrays hold each feature.
        """
        return Description(
            features=self.options.features,
            keys=keys,
            convention=self.options.convention,
            provenance=self.options.provenance,
            tasks=self.tasks,
        ).dumps()

    @abstractmethod
    def _begin(self) -> None:
        """Make, or take up, what is at ``partial``."""

    @abstractmethod
    def _write(self, episode: Episode) -> None:
        """Write one episode to ``partial``."""

    @abstractmethod
    def _complete(self) -> None:
        """Write what comes last, and close all files."""

    def _close(self) -> None:
        """Close all files after an exception."""
        return

    def _leave(self) -> None:
        self._close()
        if not self.resumable:
            remove(self.partial)

    def _publish(self) -> None:
        self._check_free_path()
        replaced = self.path.with_name(f".{self.path.name}.replaced")
        remove(replaced)
        if os.path.lexists(self.path):
            os.rename(self.path, replaced)
        os.rename(self.partial, self.path)
        remove(replaced)

    def _check_free_path(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self.options.overwrite:
            raise DataError(f"{self.path} exists; choose another name, or replace it with --overwrite")
        from mode_datasets.convert.formats import detect

        # Replacing means deleting: only what was surely a data set of this kind.
        if detect(self.path).format != self._format:
            raise DataError(
                f"{self.path} exists and is no data set of the format {self._format!r}, so it is not "
                "replaced; choose another name"
            )

    def _cannot_write(self, error: OSError) -> DataError:
        free = shutil.disk_usage(existing_parent(self.path)).free
        return DataError(
            f"cannot write {self.path}: {error.strerror or error} ({free / 2**20:.1f} MiB are free); free "
            "space there or write to another folder"
        )


def partial_path(path: Path) -> Path:
    """Return where data grow until they are complete: the same place as `mode_datasets.StoreWriter`'s."""
    return path.absolute().with_name(f".{path.absolute().name}.partial")


def remove(path: Path) -> None:
    """Delete a file or a folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
