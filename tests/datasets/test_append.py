"""Episodes that were acknowledged survive a kill at any moment; what was not is left out, and said."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
import zarr.storage._local as local

from mode_datasets import StoreWriter, open_store
from mode_datasets.writer import update_attributes
from mode_policy.convention import Convention
from mode_policy.errors import DataError
from mode_policy.types import Episode, InstructionTable

from .conftest import CAMERA, CONVENTION, PROVENANCE, TASKS, WITH_IMAGES, make_episodes, write

ROOT = Path(__file__).parents[2]
LENGTHS = [5, 9, 3, 7, 4, 8, 6, 5, 9, 3, 7, 4]


def same(path: Path, episodes: list[Episode]) -> None:
    """Hold a store to the episodes that it should contain."""
    store = open_store(path)
    assert store.num_episodes == len(episodes)
    for i, expected in enumerate(episodes):
        found = store.episode(i)
        assert (found.task, found.seed) == (expected.task, expected.seed)
        for key in WITH_IMAGES:
            np.testing.assert_array_equal(found.arrays[key], expected.arrays[key])


@pytest.fixture(autouse=True)
def _several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mode_datasets.profiles.SHARD_FRAMES", 8)
    monkeypatch.setattr("mode_datasets.columns.VECTOR_BYTES", 48)


def test_a_store_grows(tmp_path: Path) -> None:
    episodes = make_episodes(LENGTHS, WITH_IMAGES)
    path = tmp_path / "demo.zarr"
    write(path, episodes[:4], WITH_IMAGES)
    for start, end in ((4, 5), (5, 12)):
        with StoreWriter.append_to(path) as writer:
            assert writer.num_episodes == start
            for episode in episodes[start:end]:
                writer.append(episode)
    same(path, episodes)
    grown = open_store(path)
    write(tmp_path / "once.zarr", episodes, WITH_IMAGES)
    once = open_store(tmp_path / "once.zarr")
    assert grown.notes == ()
    for key, values in once.statistics.items():
        for name, value in values.items():
            np.testing.assert_array_equal(grown.statistics[key][name], value)


WRITER = """
import sys
import mode_datasets.columns, mode_datasets.profiles
from pathlib import Path
from mode_datasets import StoreWriter
from tests.datasets.conftest import WITH_IMAGES, make_episodes
from tests.datasets.test_append import LENGTHS
mode_datasets.profiles.SHARD_FRAMES, mode_datasets.columns.VECTOR_BYTES = 8, 48
with StoreWriter.append_to(Path(sys.argv[1])) as writer:
    print("open", flush=True)
    for _ in range(1000):
        for episode in make_episodes(LENGTHS, WITH_IMAGES):
            writer.append(episode)
            print("acknowledged", flush=True)
"""


@pytest.mark.parametrize("seed", range(4))
def test_acknowledged_episodes_survive_a_kill(tmp_path: Path, seed: int) -> None:
    """A real writer is killed at a random moment; then the store is read, appended to, and read again."""
    path = tmp_path / "demo.zarr"
    first = make_episodes(LENGTHS, WITH_IMAGES)
    write(path, first, WITH_IMAGES)
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        time.sleep(random.Random(seed).uniform(0.05, 0.8))
        process.kill()
        acknowledged = process.stdout.read().count("acknowledged")
    store = open_store(path)
    # One more may have been committed whose acknowledgement did not come through.
    more = store.num_episodes - len(first)
    assert more in (acknowledged, acknowledged + 1)
    expected = first + [first[i % len(first)] for i in range(more)]
    same(path, expected)
    if more:
        assert "did not finish" in " ".join(store.notes)
    with StoreWriter.append_to(path) as writer:
        writer.append(first[0])
    same(path, [*expected, first[0]])
    assert open_store(path).notes == ()


@pytest.mark.parametrize("keep", range(0, 400, 7))
def test_a_write_that_stops_anywhere_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    """The n-th change to the disk, for every n, is the last: what was acknowledged before is all there."""
    episodes = make_episodes(LENGTHS[:5], WITH_IMAGES)
    path = tmp_path / "demo.zarr"
    write(path, episodes[:2], WITH_IMAGES)
    changes = 0

    class Dead(BaseException):
        pass

    put = local._put

    def dying(*arguments: object, **options: object) -> int:
        nonlocal changes
        changes += 1
        if changes > keep // 7:
            raise Dead
        return put(*arguments, **options)  # type: ignore[arg-type]

    acknowledged = 2
    monkeypatch.setattr(local, "_put", dying)
    writer = StoreWriter.append_to(path)
    try:
        writer.__enter__()
        for episode in episodes[2:]:
            writer.append(episode)
            acknowledged += 1
    except Dead:
        pass
    finally:
        monkeypatch.undo()
        writer._abandon()
    found = open_store(path)
    assert found.num_episodes == acknowledged
    same(path, episodes[:acknowledged])


def test_a_kill_while_instructions_are_replaced_loses_no_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th change to the disk is the last, for each of those that complete an append."""
    episodes = make_episodes(LENGTHS[:3], WITH_IMAGES)
    base = tmp_path / "base.zarr"

    def table(value: float) -> InstructionTable:
        texts = tuple(task.instruction for task in TASKS)
        return InstructionTable(encoder="x", instructions=texts, embeddings=torch.full((2, 4), value))

    write(base, episodes[:2], WITH_IMAGES, instructions=table(1.0))
    left = 0

    class Dead(BaseException):
        pass

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def call_or_die(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise Dead
            return call(*arguments, **options)

        return call_or_die

    for module, name in ((local, "_put"), (local.LocalStore, "delete_dir")):
        monkeypatch.setattr(module, name, dying(getattr(module, name)))
    found = []
    for changes in itertools.count():
        path = tmp_path / f"{changes}.zarr"
        shutil.copytree(base, path)
        left = 10**6
        writer = StoreWriter.append_to(path)
        writer.__enter__()
        writer.append(episodes[2])
        writer.set_instructions(table(2.0))
        left = changes
        try:
            writer.finish()
        except Dead:
            left = 10**6
        finally:
            writer._abandon()
        same(path, episodes)
        known = open_store(path).instruction_table
        found.append(None if known is None else known.embeddings.unique().tolist())
        if left < 10**6:
            break
    # The old ones, none, the new ones; never a mixture.
    assert [value for value, _ in itertools.groupby(found)] == [[1.0], None, [2.0]]


@pytest.mark.parametrize("orientation", ["upside_down", "rotated_180"])
def test_images_are_appended_as_the_others_are_stored(tmp_path: Path, orientation: str) -> None:
    path = tmp_path / "demo.zarr"
    episodes = make_episodes(LENGTHS[:3], WITH_IMAGES)
    write(path, episodes[:2], WITH_IMAGES)
    update_attributes(path, {"image_orientation": orientation})
    before = [open_store(path).episode(i) for i in range(2)]
    with StoreWriter.append_to(path) as writer:
        writer.append(episodes[2])
    same(path, [*before, episodes[2]])
    assert open_store(path).image_orientation == orientation


def test_what_is_dropped_is_said(tmp_path: Path) -> None:
    path = tmp_path / "demo.zarr"
    episodes = make_episodes(LENGTHS[:3], WITH_IMAGES)
    write(path, episodes, WITH_IMAGES)
    group = zarr.open_group(str(path), mode="r+")
    array = group[f"data/{CAMERA}"]
    assert isinstance(array, zarr.Array)
    array.resize((20, *array.shape[1:]))  # as a writer that is killed before it has written what follows
    assert open_store(path).notes == ("3 steps of an episode that was never acknowledged were dropped",)
    same(path, episodes)


def test_an_interrupted_new_store_is_taken_up(tmp_path: Path) -> None:
    episodes = make_episodes(LENGTHS, WITH_IMAGES)
    path = tmp_path / "demo.zarr"

    def writer(**changes: object) -> StoreWriter:
        options = {"resume": True, "commit_every": 2} | changes
        return StoreWriter(path, WITH_IMAGES, CONVENTION, PROVENANCE, **options)  # type: ignore[arg-type]

    def interrupted() -> None:
        with writer() as first:
            for episode in episodes[:5]:
                first.append(episode)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not path.exists()
    with pytest.raises(DataError, match=r"left by an interrupted writer of other profile.*delete it"):
        writer(profile="archive").__enter__()
    with writer() as second:
        assert second.num_episodes == 5
        for episode in episodes[second.num_episodes :]:
            second.append(episode)
    same(path, episodes)
    assert [p.name for p in tmp_path.iterdir()] == ["demo.zarr"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "demo.zarr"
    write(path, make_episodes([3], WITH_IMAGES), WITH_IMAGES)
    with StoreWriter.append_to(path) as writer:
        with pytest.raises(DataError, match="being written by another process"):
            StoreWriter.append_to(path).__enter__()
        with pytest.raises(DataError, match="being written by another process"):
            update_attributes(path, {})
        writer.append(make_episodes([4], WITH_IMAGES)[0])
    assert open_store(path).num_episodes == 2


def test_a_new_store_is_not_begun_twice(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from mode_datasets import StoreWriter
        from tests.datasets.conftest import CONVENTION, PROVENANCE, WITH_IMAGES, make_episodes
        with StoreWriter(sys.argv[1], WITH_IMAGES, CONVENTION, PROVENANCE) as writer:
            writer.append(make_episodes([3], WITH_IMAGES)[0])
            print("open", flush=True)
            sys.stdin.readline()
        """
    )
    path = tmp_path / "demo.zarr"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(DataError, match="being written by another process"):
            write(path, make_episodes([4], WITH_IMAGES), WITH_IMAGES)
        process.communicate("\n")
    assert open_store(path).episode_lengths.tolist() == [3]


def test_stores_of_the_first_schema_are_read_and_extended(tmp_path: Path) -> None:
    path = tmp_path / "demo.zarr"
    episodes = make_episodes(LENGTHS[:4], WITH_IMAGES)
    write(path, episodes[:3], WITH_IMAGES)
    group = zarr.open_group(str(path), mode="r+")
    old = dict(group.attrs)
    for name in ("convention", "image_orientation", "profile", "episodes"):
        del old[name]
    statistics = {k: v for k, v in old["statistics"].items() if k != "episodes"}  # type: ignore[union-attr]
    group.attrs.put(old | {"schema_version": 1, "fps": 12.5, "statistics": statistics})
    store = open_store(path)
    assert store.convention == Convention(fps=12.5)
    assert (store.notes, store.num_episodes) == ((), 3)
    with StoreWriter.append_to(path) as writer:
        writer.append(episodes[3])
    same(path, episodes)
    assert zarr.open_group(str(path), mode="r").attrs["schema_version"] == 2
