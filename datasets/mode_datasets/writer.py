"""Writing stores: new ones appear whole or not at all, appended episodes count once acknowledged."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import zarr

from mode_datasets import reading, schema
from mode_datasets.columns import Column, create_images, create_vectors, sync
from mode_datasets.location import LocalFolder
from mode_datasets.profiles import ProfileName, profile
from mode_datasets.schema import Provenance
from mode_policy.convention import Convention, Orientation
from mode_policy.errors import DataError
from mode_policy.files import existing_parent
from mode_policy.normalization import compute_statistics, statistics_to_json
from mode_policy.types import Episode, Features, InstructionTable, Task

_META = (schema.EPISODE_ENDS, schema.EPISODE_TASK, schema.EPISODE_SEED)


class StoreWriter:
    """Write episodes to a store; use it as a context manager.

    A new store grows in a hidden sibling, ``.<name>.partial``, and is renamed to ``path`` when the ``with``
    block ends well. After an exception the sibling is removed, unless ``resume`` is set: then the next writer
    with ``resume`` goes on after the last acknowledged episode. `append_to` extends a finished store in
    place.

    An episode is *acknowledged* once `commit` (or `append`, every ``commit_every`` episodes) has returned: it
    is on disk, and a kill at any later moment does not lose it.

    Args:
        path: Folder of the new store.
        features: Feature key → its description; each episode brings exactly these.
        convention: What the numbers mean, the control rate included.
        provenance: Where the demonstrations come from.
        profile: How images are written, see `mode_datasets.profiles`.
        overwrite: Replace a store that is already at ``path``, once the new one is complete.
        resume: Keep what has been written when interrupted, and go on with what an interrupted writer left.
        commit_every: Acknowledge after so many episodes; None to do so only at the end and by `commit`.

    Raises:
        DataError: if the features are malformed, the control rate is not given, something is at ``path`` that
            may not be replaced, or an interrupted store is of another kind.
    """

    def __init__(
        self,
        path: Path | str,
        features: Features,
        convention: Convention,
        provenance: Provenance,
        *,
        profile: ProfileName = "train",
        overwrite: bool = False,
        resume: bool = False,
        commit_every: int | None = None,
    ) -> None:
        schema.check_features(features)
        if convention.fps is None:
            raise DataError("the convention does not give the control rate; set its fps")
        self.path = Path(path).absolute()
        self.features = dict(features)
        self.convention = convention
        self.provenance = provenance
        self.profile = profile
        self.overwrite = overwrite
        self.resume = resume
        self.commit_every = commit_every
        self._orientation: Orientation = "upright"
        self._folder = self.path.with_name(f".{self.path.name}.partial")
        self._appends = False
        self._check_free_path()
        self._reset()

    @classmethod
    def append_to(cls, path: Path | str, *, commit_every: int | None = 1) -> StoreWriter:
        """Return a writer that extends a finished store in place; the store stays readable meanwhile.

        Raises:
            DataError: if there is no such store of ours.
        """
        from mode_datasets.store import open_store

        store = open_store(path)
        writer = cls.__new__(cls)
        writer.path = writer._folder = Path(path).absolute()
        writer.features = dict(store.features)
        writer.convention, writer.provenance = store.convention, store.provenance
        assert store.profile is not None  # opened without a layout, so it is ours
        writer.profile, writer.commit_every = store.profile, commit_every
        writer._orientation = store.image_orientation
        writer.overwrite, writer.resume, writer._appends = False, True, True
        writer._reset()
        return writer

    def _reset(self) -> None:
        self._group: zarr.Group | None = None
        self._lock: int | None = None
        self._columns: dict[str, Column] = {}
        self._tasks: dict[str, Task] = {}
        self._task_episodes: Counter[str] = Counter()
        self._episodes = 0
        self._steps = 0
        self._acknowledged = 0
        self._instructions: InstructionTable | None = None

    @property
    def num_episodes(self) -> int:
        """Episodes so far, those of an interrupted writer or of the store that is extended included."""
        return self._episodes

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Tasks of those episodes."""
        return tuple(self._tasks.values())

    @property
    def task_episodes(self) -> dict[str, int]:
        """Name of each of those tasks → number of its episodes."""
        return dict(self._task_episodes)

    def __enter__(self) -> Self:
        try:
            with self._writing():
                self._folder.mkdir(parents=True, exist_ok=True)
                self._lock = _lock(self._folder)
                if self._appends or (self.resume and (self._folder / "zarr.json").is_file()):
                    self._take_up()
                else:
                    self._begin()
        except BaseException:
            self._abandon()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._group is not None:
                if kind is None:
                    self.finish()
                elif self.resume:
                    self.commit()
        finally:
            self._abandon()

    def append(self, episode: Episode) -> None:
        """Append one episode.

        Raises:
            DataError: if its keys, lengths, shapes, types or values do not fit (nothing is appended then, and
                the writer can go on), or if writing fails (the writer is closed then).
        """
        self._open_group()
        self._check(episode)
        self._tasks.setdefault(episode.task.name, episode.task)
        self._task_episodes[episode.task.name] += 1
        self._episodes += 1
        self._steps += len(episode)
        meta = (self._steps, list(self._tasks).index(episode.task.name), episode.seed)
        with self._writing():
            for key, x in episode.arrays.items():
                is_image = len(self.features[key].shape) == 3
                self._columns[f"data/{key}"].append(schema.upright(x, self._orientation) if is_image else x)
            for name, value in zip(_META, meta, strict=True):
                self._columns[name].append(np.array([value], dtype=np.int64))
        if self.commit_every is not None and self._episodes - self._acknowledged >= self.commit_every:
            self.commit()

    def commit(self) -> None:
        """Acknowledge all episodes appended so far.

        Raises:
            DataError: if writing fails.
        """
        group = self._open_group()
        with self._writing():
            for column in self._columns.values():
                column.flush()
            group.update_attributes(self._attributes())
            sync(self._folder / "zarr.json")
        self._acknowledged = self._episodes

    def set_instructions(self, table: InstructionTable) -> None:
        """Store an instruction table; by the end it must know the instruction of each task."""
        self._instructions = table

    def finish(self) -> None:
        """Complete the store and let it appear at its path; the ``with`` block calls this at its end.

        Raises:
            DataError: if there are no episodes, the instruction table lacks a task, or writing fails.
        """
        group = self._open_group()
        if not self._episodes:
            raise DataError(f"no episodes were written to {self.path}; there is nothing to store")
        if self._instructions is not None:
            self._instructions.index([task.instruction for task in self._tasks.values()])
        self.commit()
        with self._writing():
            self._complete(group)
            if not self._appends:
                self._publish()
        self._group = None

    def _begin(self) -> None:
        """Make an empty store where there may be the remains of another."""
        for entry in self._folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        group = zarr.create_group(str(self._folder), zarr_format=3)
        codecs = profile(self.profile)
        for key, feature in self.features.items():
            name = f"data/{key}"
            if len(feature.shape) == 3:
                array = create_images(group, name, feature.shape, codecs)
            else:
                array = create_vectors(group, name, feature.shape, feature.dtype)
            self._columns[name] = Column(self._folder, array, 0)
        for name in _META:
            self._columns[name] = Column(self._folder, create_vectors(group, name, (), "int64"), 0)
        self._group = group
        group.update_attributes(self._attributes() | {"statistics": None, "instructions": None})

    def _take_up(self) -> None:
        """Go on after the last acknowledged episode."""
        location = LocalFolder(self._folder)
        group = zarr.open_group(str(self._folder), mode="r+", use_consolidated=False)
        attributes = schema.migrate(dict(group.attrs))
        if not self._appends:
            wanted = self._attributes() | {"provenance": self.provenance.source}
            found = attributes | {"provenance": attributes["provenance"]["source"]}
            differ = [
                k
                for k in ("features", "convention", "profile", "image_orientation", "provenance")
                if found[k] != wanted[k]
            ]
            if differ:
                raise DataError(
                    f"{self._folder} was left by an interrupted writer of other {', '.join(differ)}; "
                    "delete it, or write to another path"
                )
        ends = reading.open_array(group, location, schema.EPISODE_ENDS)
        # Stores of version 1 did not count their episodes; they were complete.
        episodes = ends.shape[0] if attributes["episodes"] is None else int(attributes["episodes"])
        steps = int(np.asarray(ends[:episodes])[-1]) if episodes else 0
        for name in [f"data/{key}" for key in self.features] + list(_META):
            # As when they were created: this setting is not kept in the files.
            array = reading.open_array(group, location, name).with_config({"write_empty_chunks": True})
            rows = episodes if name in _META else steps
            array.resize((rows, *array.shape[1:]))
            self._columns[name] = Column(self._folder, array, rows)
        self._tasks = {row["name"]: Task(**row) for row in attributes["tasks"]}
        of_tasks = reading.open_array(group, location, schema.EPISODE_TASK)
        names = list(self._tasks)
        self._task_episodes = Counter(names[row] for row in np.asarray(of_tasks[:episodes]))
        self._episodes = self._acknowledged = episodes
        self._steps = steps
        self._group = group

    def _attributes(self) -> dict[str, Any]:
        """What changes with each commit, or tells an interrupted store from another."""
        return {
            "schema_version": schema.SCHEMA_VERSION,
            "features": {key: feature.to_json() for key, feature in self.features.items()},
            "convention": self.convention.to_json(),
            "image_orientation": self._orientation,
            "profile": self.profile,
            "provenance": self.provenance.to_json(),
            "tasks": [{"name": task.name, "instruction": task.instruction} for task in self._tasks.values()],
            "episodes": self._episodes,
        }

    def _complete(self, group: zarr.Group) -> None:
        """Add what is computed from all episodes: statistics, and the embeddings of the instructions."""
        location = LocalFolder(self._folder)
        vectors = {
            key: reading.read_array(location, reading.open_array(group, location, f"data/{key}"))
            for key in schema.vector_keys(self.features)
        }
        new: dict[str, Any] = {
            "statistics": {
                "values": statistics_to_json(compute_statistics(vectors)),
                "computed_from": schema.fingerprint(vectors),
                "episodes": self._episodes,
            }
        }
        if self._instructions is not None:
            table = self._instructions
            if group.attrs["instructions"] is not None:
                # A kill while the new ones replace them leaves none.
                group.update_attributes({"instructions": None})
            embeddings = table.embeddings.detach().cpu().float().numpy()
            group.create_array(
                schema.INSTRUCTION_EMBEDDINGS,
                data=embeddings,
                overwrite=True,
                config={"write_empty_chunks": True},
            )
            new["instructions"] = {"encoder": table.encoder, "texts": list(table.instructions)}
        group.update_attributes(new)
        _sync_tree(self._folder)

    def _check(self, episode: Episode) -> None:
        where = f"episode {self._episodes}"
        schema.check_episode(episode, self.features, where)
        known = self._tasks.get(episode.task.name, episode.task)
        if known != episode.task:
            raise DataError(
                f"{where}: task {known.name!r} has the instruction {known.instruction!r} in earlier "
                f"episodes and {episode.task.instruction!r} here; give tasks distinct names"
            )

    def _open_group(self) -> zarr.Group:
        if self._group is None:
            raise DataError(f"the writer of {self.path} is not open; use `with StoreWriter(...) as writer`")
        return self._group

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn failures of the file system into an error that says what to do, and give the space back."""
        try:
            yield
        except OSError as error:
            free = shutil.disk_usage(existing_parent(self._folder)).free
            kept = f"{self._acknowledged} episodes are kept" if self.resume else "Nothing was stored"
            self._abandon()
            raise DataError(
                f"cannot write {self.path}: {error.strerror or error} ({free / 2**20:.1f} MiB were free). "
                f"{kept}; free space there or write to another folder"
            ) from error

    def _abandon(self) -> None:
        """Close the writer and, unless it resumes, remove what it has written; does nothing after success."""
        self._group = None
        self._columns.clear()
        if self._lock is not None:
            if not self.resume:
                shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._lock)
            self._lock = None

    def _check_free_path(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self.overwrite:
            raise DataError(
                f"{self.path} exists; choose another name, or replace it with overwrite=True (--overwrite)"
            )
        # Replacing means deleting a folder: never one that was not a store.
        if not ((self.path / "zarr.json").is_file() or (self.path / ".zgroup").is_file()):
            raise DataError(
                f"{self.path} exists and is no zarr store, so it is not replaced; choose another name"
            )

    def _publish(self) -> None:
        self._check_free_path()
        replaced = self.path.with_name(f".{self.path.name}.replaced")
        if self.path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.rename(self.path, replaced)
        try:
            os.rename(self._folder, self.path)
        except OSError:
            if replaced.exists():
                os.rename(replaced, self.path)
            raise
        sync(self.path.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def update_attributes(path: Path, new: Mapping[str, Any]) -> None:
    """Change attributes of a finished store in one step; its schema is brought up to date.

    Raises:
        DataError: if another process is writing it, or it is not a store of ours.
    """
    descriptor = _lock(path)
    try:
        group = zarr.open_group(str(path), mode="r+", use_consolidated=False)
        group.attrs.put(schema.migrate(dict(group.attrs)) | dict(new))
        sync(path / "zarr.json")
    finally:
        os.close(descriptor)


def _lock(folder: Path) -> int:
    """Hold a folder against other writers until the returned descriptor is closed, or this process ends.

    Raises:
        DataError: if another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise DataError(
            f"{folder} is being written by another process; wait for it or choose another path"
        ) from None
    return descriptor


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            sync(Path(root) / name)
        sync(Path(root))
