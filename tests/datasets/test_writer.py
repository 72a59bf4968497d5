"""A store appears whole or not at all, and bad episodes do not get in."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mode_datasets.profiles
from mode_datasets import StoreWriter, open_store
from mode_policy.convention import Convention
from mode_policy.errors import DataError
from mode_policy.types import ACTION, STATE, Episode, Feature, Task

from .conftest import CAMERA, CONVENTION, PROVENANCE, VECTORS, WITH_IMAGES, make_episodes, write


def writer_of(path: Path, overwrite: bool = False) -> StoreWriter:
    return StoreWriter(path, WITH_IMAGES, CONVENTION, PROVENANCE, overwrite=overwrite)


def changed(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Episode:
    episode = make_episodes([6], WITH_IMAGES)[0]
    return replace(episode, arrays={**episode.arrays, key: change(episode.arrays[key])})


def with_nan(x: np.ndarray) -> np.ndarray:
    x[4, 1] = np.nan
    return x


def interrupted() -> Iterator[Episode]:
    """An episode, and then Ctrl-C."""
    yield from make_episodes([5], WITH_IMAGES)
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("episode", "message"),
    [
        (changed(STATE, lambda x: x[:-1]), r"observation.state' is float32 \(5, 3\).* \(6, 3\)"),
        (changed(STATE, lambda x: x[:, :2]), r"\(6, 2\).* \(6, 3\)"),
        (changed(ACTION, lambda x: x.astype(np.float64)), "float64 .* float32"),
        (changed(CAMERA, lambda x: x / np.float32(255)), "float32 .* uint8"),
        (changed(ACTION, with_nan), "'action' is nan at step 4, dimension 1"),
        (changed(STATE, lambda x: x * np.float32(np.inf)), "observation.state' is -?inf at step 0"),
        (make_episodes([0], WITH_IMAGES)[0], "no steps"),
        (make_episodes([6], VECTORS)[0], rf"lacks \['{CAMERA}'\]"),
    ],
)
def test_bad_episodes_are_refused_and_the_writer_goes_on(
    tmp_path: Path, episode: Episode, message: str
) -> None:
    good = make_episodes([6], WITH_IMAGES)[0]
    with writer_of(tmp_path / "demo.zarr") as writer:
        writer.append(good)
        with pytest.raises(DataError, match=f"episode 1.*{message}"):
            writer.append(episode)
        writer.append(good)
    assert open_store(tmp_path / "demo.zarr").episode_lengths.tolist() == [6, 6]


def test_images_do_not_pile_up_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mode_datasets.profiles, "SHARD_FRAMES", 8)
    with writer_of(tmp_path / "demo.zarr") as writer:
        writer.append(make_episodes([20], WITH_IMAGES)[0])
        written = [p for p in tmp_path.glob(f".*/data/{CAMERA}/c/**/*") if p.is_file()]
        assert len(written) == 2


def test_one_task_has_one_instruction(tmp_path: Path) -> None:
    first, second = make_episodes([3, 3], WITH_IMAGES)
    second = replace(second, task=Task(name=first.task.name, instruction="something else"))
    with pytest.raises(DataError, match="something else"):
        write(tmp_path / "demo.zarr", [first, second], WITH_IMAGES)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({STATE: Feature(shape=(3,))}, "lack 'action'"),
        ({ACTION: Feature(shape=(2,), dtype="float64")}, "float64"),
        (
            {ACTION: Feature(shape=(2,)), CAMERA: Feature(shape=(3, 4, 5), dtype="uint8")},
            r"uint8 \(H, W, 3\)",
        ),
        ({ACTION: Feature(shape=(2,)), "image": Feature(shape=(4,))}, "'image' is neither"),
    ],
)
def test_bad_features_are_refused(tmp_path: Path, features: dict[str, Feature], message: str) -> None:
    with pytest.raises(DataError, match=message):
        StoreWriter(tmp_path / "demo.zarr", features, CONVENTION, PROVENANCE)


def test_rates_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fps is 0"):
        StoreWriter(tmp_path / "demo.zarr", VECTORS, Convention(fps=0), PROVENANCE)
    with pytest.raises(DataError, match="does not give the control rate"):
        StoreWriter(tmp_path / "demo.zarr", VECTORS, Convention(), PROVENANCE)


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "demo.zarr", interrupted(), WITH_IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_store_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no episodes"), writer_of(tmp_path / "demo.zarr"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_writer_is_used_within_its_block(tmp_path: Path) -> None:
    writer = writer_of(tmp_path / "demo.zarr")
    episode = make_episodes([3], WITH_IMAGES)[0]
    with pytest.raises(DataError, match="not open"):
        writer.append(episode)
    with writer:
        writer.append(episode)
        writer.finish()
        assert open_store(tmp_path / "demo.zarr").num_steps == 3
        with pytest.raises(DataError, match="not open"):
            writer.append(episode)
    assert open_store(tmp_path / "demo.zarr").num_steps == 3


def test_the_callers_arrays_may_be_reused(tmp_path: Path) -> None:
    episode = make_episodes([3], WITH_IMAGES)[0]
    expected = {key: x.copy() for key, x in episode.arrays.items()}
    with writer_of(tmp_path / "demo.zarr") as writer:
        writer.append(episode)
        for x in episode.arrays.values():
            x[:] = 0
    for key, x in open_store(tmp_path / "demo.zarr").episode(0).arrays.items():
        np.testing.assert_array_equal(x, expected[key])


def test_stores_are_replaced_only_on_request_and_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "demo.zarr"
    write(path, make_episodes([3], WITH_IMAGES), WITH_IMAGES)
    with pytest.raises(DataError, match=r"exists.*overwrite=True"):
        writer_of(path)
    with pytest.raises(KeyboardInterrupt):
        write(path, interrupted(), WITH_IMAGES, overwrite=True)
    assert open_store(path).num_steps == 3
    write(path, make_episodes([5], WITH_IMAGES), WITH_IMAGES, overwrite=True)
    assert open_store(path).num_steps == 5
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_no_store_is_never_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="no zarr store"):
        writer_of(tmp_path, overwrite=True)


def test_a_store_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "demo.zarr"

    def overtaken() -> Iterator[Episode]:
        yield from make_episodes([3], WITH_IMAGES)
        write(tmp_path / "rival.zarr", make_episodes([4], WITH_IMAGES), WITH_IMAGES)
        os.rename(tmp_path / "rival.zarr", path)

    with pytest.raises(DataError, match="exists"):
        write(path, overtaken(), WITH_IMAGES)
    assert open_store(path).num_steps == 4


def test_a_killed_writer_leaves_no_store(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time, mode_datasets.profiles
        from mode_datasets import StoreWriter
        from pathlib import Path
        from tests.datasets.conftest import CONVENTION, PROVENANCE, WITH_IMAGES, make_episodes
        mode_datasets.profiles.SHARD_FRAMES = 8
        with StoreWriter(Path(sys.argv[1]), WITH_IMAGES, CONVENTION, PROVENANCE) as writer:
            for episode in make_episodes([20, 20], WITH_IMAGES):
                writer.append(episode)
            print("written", flush=True)
            time.sleep(60)
        """
    )
    path = tmp_path / "demo.zarr"
    command = [sys.executable, "-c", script, str(path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == [".demo.zarr.partial"]
    write(path, make_episodes([3], WITH_IMAGES), WITH_IMAGES)
    assert open_store(path).num_steps == 3


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system that runs full needs root and the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("features", [VECTORS, WITH_IMAGES], ids=["vectors", "images"])
def test_no_space_left_is_explained_and_given_back(full_disk: Path, features: dict[str, Feature]) -> None:
    path = full_disk / "demo.zarr"
    message = rf"cannot write {path}: No space left on device \(.* MiB were free\).*free space"
    with pytest.raises(DataError, match=message):
        write(path, make_episodes([30_000], features), features)
    assert list(full_disk.iterdir()) == []
    write(path, make_episodes([30], VECTORS), VECTORS)


def test_any_failing_write_is_explained(tmp_path: Path) -> None:
    """A limit on file size fails in the same system call as a full disk, and needs no rights."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    episode = make_episodes([20_000], VECTORS)[0]
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot write .*File too large"):
            write(tmp_path / "demo.zarr", [episode], VECTORS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*Not a directory"):
        write(tmp_path / "file" / "demo.zarr", make_episodes([3], VECTORS), VECTORS)
