"""Checks of images, in one pass over each camera: damaged, frozen, repeated, blank, of the same camera twice.

Legend: T steps of all episodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import google_crc32c
import numpy as np

from mode_datasets import reading
from mode_datasets.check.contents import Contents, runs
from mode_datasets.check.files import Damage
from mode_datasets.check.findings import Finding, plural
from mode_policy.errors import DataError

#: Bytes of frames that are held at once.
BLOCK_BYTES = 16 * 2**20

#: A camera is frozen if so many frames are equal, bit for bit, while the robot moves this share of its range.
#: So many seconds at both ends do not count: pictures may lag behind the state.
FROZEN_FRAMES, FROZEN_TRAVEL, LATENCY_SECONDS = 3, 0.05, 0.1

#: A step moves if the robot goes this share of its range; a camera is slow if this share of them brings no
#: new frame.
MOVING_TRAVEL, REPEATED_SHARE = 0.01, 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """What one pass over the images of a camera found.

    Attributes:
        checksums: uint32 ``(T,)``, CRC-32C of each frame.
        blank: bool ``(T,)``: all values of the frame are equal.
        damage: What could not be read.
    """

    checksums: np.ndarray
    blank: np.ndarray
    damage: Damage


def scan(contents: Contents, key: str, advance: Callable[[int], None]) -> Scan:
    """Read all images of a camera.

    Args:
        contents: The store.
        key: Of the camera.
        advance: Is called with the number of frames that were read.
    """
    store, array = contents.store, contents.store.array(key)
    steps = store.num_steps
    checksums, blank = np.zeros(steps, np.uint32), np.zeros(steps, bool)
    unread, why = np.zeros(steps, bool), {}
    files = [file for file, _ in reading.blocks(array, steps)]
    rows_of_file = (array.shards or array.chunks)[0]
    for i, file in enumerate(files):
        if not store.location.exists(file):  # some readers would take it for black frames
            unread[i * rows_of_file : (i + 1) * rows_of_file] = True
            why[file] = f"{file} is missing"
    frame_bytes = max(1, int(np.prod(array.shape[1:])) * array.dtype.itemsize)
    chunk = array.chunks[0]
    block = chunk * max(1, BLOCK_BYTES // (chunk * frame_bytes))

    def read(start: int, stop: int) -> str:
        """Read some frames; return what is wrong, or nothing."""
        try:
            frames = store.frames(key, np.arange(start, stop)).reshape(stop - start, -1)
        except DataError as error:
            return str(error).split(f"{store.location}/")[-1].split("; ")[0]
        checksums[start:stop] = [google_crc32c.value(frame.tobytes()) for frame in frames]
        thin = frames[:, ::61]
        for i in np.flatnonzero(thin.max(1) == thin.min(1)):
            blank[start + i] = frames[i].max() == frames[i].min()
        return ""

    for start in range(0, steps, block):
        stop = min(start + block, steps)
        if unread[start:stop].any() or read(start, stop):
            for low in range(start, stop, chunk):
                high = min(low + chunk, stop)
                if not unread[low] and (error := read(low, high)):
                    unread[low:high] = True
                    why[files[low // rows_of_file]] = error
        advance(stop - start)
    return Scan(
        checksums=checksums,
        blank=blank,
        damage=Damage(array=array.path, files=why, rows=unread, total=len(files)),
    )


def check_cameras(contents: Contents, scans: Mapping[str, Scan]) -> Iterator[Finding]:
    """Yield what the scans of all cameras show."""
    for key, found in scans.items():
        if found.damage.files:
            rows = np.flatnonzero(found.damage.rows)
            yield found.damage.finding(
                key, contents.episodes_of(rows), contents.step_in_episode(int(rows[0]))
            )
        yield from _blank(contents, key, found)
        yield from _frozen(contents, key, found)
    yield from _same_camera(scans)


def _blank(contents: Contents, key: str, found: Scan) -> Iterator[Finding]:
    steps = np.flatnonzero(found.blank)
    if len(steps):
        yield Finding(
            check="blank_frames",
            severity="warning",
            what=f"{plural(len(steps), 'frame')} of a single colour",
            fix="the camera was off or covered: leave these episodes out with mode-data filter",
            feature=key,
            episodes=contents.episodes_of(steps),
            step=contents.step_in_episode(int(steps[0])),
        )


def _frozen(contents: Contents, key: str, found: Scan) -> Iterator[Finding]:
    equal = found.checksums[1:] == found.checksums[:-1]
    sound = ~found.damage.rows & contents.finite & ~found.blank
    same = np.concatenate([[False], equal & sound[1:] & sound[:-1]]) & contents.continues
    first, length = runs(same)
    spare = max(1, round(LATENCY_SECONDS * contents.store.fps))
    chosen = length >= FROZEN_FRAMES + 2 * spare
    frozen = [
        (int(start), int(n))
        for start, n in zip(first[chosen], length[chosen], strict=True)
        if np.ptp(contents.travel[start + spare : start + n - spare], axis=0).max(initial=0) >= FROZEN_TRAVEL
    ]
    if frozen:
        longest = max(n for _, n in frozen)
        starts = np.array([start for start, _ in frozen])
        yield Finding(
            check="frozen_frames",
            severity="warning",
            what=f"{plural(len(frozen), 'time')}, the picture stands still while the robot moves, up to "
            f"{longest} frames ({longest / contents.store.fps:.1f} s)",
            fix="the camera had stopped: leave these episodes out with mode-data filter",
            feature=key,
            episodes=contents.episodes_of(starts),
            step=contents.step_in_episode(frozen[0][0]),
        )
    for start, n in frozen:
        same[start : start + n] = False
    moved = np.abs(np.diff(contents.travel, axis=0, prepend=contents.travel[:1])).max(1, initial=0)
    moving = contents.continues & sound & (moved >= MOVING_TRAVEL)
    repeated = same & moving
    if repeated.sum() > max(REPEATED_SHARE * moving.sum(), 2):
        share = np.bincount(contents.episode[repeated], minlength=contents.store.num_episodes) / np.maximum(
            np.bincount(contents.episode[moving], minlength=contents.store.num_episodes), 1
        )
        yield Finding(
            check="repeated_frames",
            severity="warning",
            what=f"{repeated.sum() / moving.sum():.0%} of the steps that move the robot bring no new frame",
            fix="the camera is slower than the control rate: record both at one rate, or skip steps",
            feature=key,
            episodes=tuple(np.flatnonzero(share > REPEATED_SHARE).tolist()),
            step=contents.step_in_episode(int(np.flatnonzero(repeated)[0])),
        )


def _same_camera(scans: Mapping[str, Scan]) -> Iterator[Finding]:
    for (a, first), (b, second) in itertools.combinations(scans.items(), 2):
        both = ~(first.damage.rows | second.damage.rows | first.blank | second.blank)
        if both.any() and (first.checksums == second.checksums)[both].mean() > 0.99:
            yield Finding(
                check="same_camera",
                severity="error",
                what=f"holds the same pictures as {b}",
                fix="one camera was recorded twice: correct the mapping of cameras and convert again",
                feature=a,
            )
