"""Each fault of the data is found where it is, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mode_datasets.check import check_store
from mode_policy.types import ACTION, STATE, Episode, Feature, Task
from tests.datasets.conftest import CAMERA, rewrite

from .conftest import CONVENTION, FEATURES, WRIST, MakeStore, alarms, changed, only

VECTORS = {key: FEATURES[key] for key in (STATE, ACTION)}


def with_episode(index: int, **arrays: np.ndarray):
    """A change of one episode."""

    def change(episodes: list[Episode]) -> list[Episode]:
        episodes[index] = changed(episodes[index], **arrays)
        return episodes

    return change


def test_good_demonstrations_raise_no_alarm(make_demos: MakeStore) -> None:
    report = check_store(make_demos()).report
    assert alarms(report) == {}
    assert report.exit_code(strict=True) == 0
    assert [f.what[:45] for f in report.findings] == ["the state follows the action at once (correla"]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_values_that_are_not_finite(make_demos: MakeStore, value: float, clean_episodes) -> None:
    path = make_demos(features=VECTORS)
    start = len(clean_episodes[0]) + len(clean_episodes[1])

    def poison(x: np.ndarray) -> np.ndarray:
        x[start + 5, 1] = x[start + 6, 0] = value
        return x

    rewrite(path, f"data/{STATE}", poison)
    finding = only(path, "not_finite")
    assert (finding.severity, finding.episodes, finding.step) == ("error", (2,), 5)
    assert "2 steps" in finding.what
    assert f"{value} in y" in finding.what


def test_every_poisoned_episode_is_named(make_demos: MakeStore) -> None:
    path = make_demos(features=VECTORS)
    rewrite(path, f"data/{ACTION}", lambda x: np.where(np.arange(len(x))[:, None] % 100 == 99, np.nan, x))
    assert len(only(path, "not_finite").episodes) >= 7


def test_an_action_dimension_that_is_never_used(make_demos: MakeStore) -> None:
    def no_y(episodes: list[Episode]) -> list[Episode]:
        return [changed(e, action=e.arrays[ACTION] * np.float32([1, 0, 1])) for e in episodes]

    finding = only(make_demos(no_y, features=VECTORS), "dead_dimension")
    assert finding.feature == ACTION
    assert finding.what == "1 of 3 never vary: y"


def test_a_constant_state_dimension_is_only_noted(make_demos: MakeStore) -> None:
    def no_y(episodes: list[Episode]) -> list[Episode]:
        return [changed(e, state=e.arrays[STATE] * np.float32([1, 0, 1])) for e in episodes]

    report = check_store(make_demos(no_y, features=VECTORS)).report
    assert alarms(report) == {}
    assert [f.what for f in report.findings if f.check == "dead_dimension"] == ["1 of 3 never vary: y"]


def test_action_outliers(make_demos: MakeStore, clean_episodes) -> None:
    action = clean_episodes[4].arrays[ACTION].copy()
    action[7, 0] = 40.0
    finding = only(make_demos(with_episode(4, action=action), features=VECTORS), "outlier")
    assert (finding.feature, finding.episodes, finding.step) == (ACTION, (4,), 7)
    assert "x: 40" in finding.what


def test_rare_motions_are_no_outliers(make_demos: MakeStore) -> None:
    """A dimension rests, but for some motion in a third of the episodes."""

    def rest(episodes: list[Episode]) -> list[Episode]:
        for i, episode in enumerate(episodes):
            action = episode.arrays[ACTION].copy()
            action[:, 1] = 1e-4 * action[:, 1]
            if i % 6 == 0:
                action[20:22, 1] = 0.8
            episodes[i] = changed(episode, action=action)
        return episodes

    report = check_store(make_demos(rest, features=VECTORS)).report
    assert alarms(report) == {}
    assert any(f.check == "outlier" for f in report.findings)


def test_saturated_actions(make_demos: MakeStore) -> None:
    def clip(episodes: list[Episode]) -> list[Episode]:
        return [
            changed(e, action=np.clip(e.arrays[ACTION], [0.45, 0, -1], [0.55, 1, 1]).astype(np.float32))
            for e in episodes
        ]

    finding = only(make_demos(clip, features=VECTORS), "saturation")
    assert "x 8" in finding.what, "of a dimension that is clipped to a tenth of its range"
    assert "gripper" not in finding.what, "which is at its bounds by nature"


def test_a_state_that_got_stuck(make_demos: MakeStore, clean_episodes) -> None:
    state = clean_episodes[3].arrays[STATE].copy()
    state[10:40] = state[10]
    finding = only(make_demos(with_episode(3, state=state), features=VECTORS), "stuck_state")
    assert (finding.feature, finding.episodes, finding.step) == (STATE, (3,), 10)


def test_a_robot_that_waits_is_no_fault(make_demos: MakeStore) -> None:
    """States, actions and pictures repeat exactly, as in a simulation that is paused."""

    def wait(episodes: list[Episode]) -> list[Episode]:
        keep = np.concatenate([np.arange(20), np.full(40, 20), np.arange(21, 45)])
        return [replace(e, arrays={key: x[keep] for key, x in e.arrays.items()}) for e in episodes]

    assert alarms(check_store(make_demos(wait)).report) == {}


def test_an_object_that_nobody_touches_is_not_stuck(make_demos: MakeStore) -> None:
    key = "observation.environment_state"

    def place(episodes: list[Episode]) -> list[Episode]:
        poses = [np.full((len(e), 2), i, np.float32) for i, e in enumerate(episodes)]
        return [replace(e, arrays={**e.arrays, key: x}) for e, x in zip(episodes, poses, strict=True)]

    path = make_demos(place, features={**VECTORS, key: Feature(shape=(2,))})
    assert alarms(check_store(path).report) == {}


def test_an_episode_in_which_nothing_happens(make_demos: MakeStore, clean_episodes) -> None:
    still = {key: np.repeat(clean_episodes[6].arrays[key][:1], 60, axis=0) for key in (STATE, ACTION)}
    path = make_demos(with_episode(6, state=still[STATE], action=still[ACTION]), features=VECTORS)
    assert only(path, "still_episode").episodes == (6,)


def test_episodes_that_were_aborted(make_demos: MakeStore) -> None:
    def cut(episodes: list[Episode]) -> list[Episode]:
        for i, steps in ((1, 3), (8, 9)):
            episodes[i] = replace(episodes[i], arrays={k: x[:steps] for k, x in episodes[i].arrays.items()})
        return episodes

    finding = only(make_demos(cut, features=VECTORS), "short_episode")
    assert finding.episodes == (1, 8)
    assert "of 3, 9 steps" in finding.what


def test_an_episode_that_is_there_twice(make_demos: MakeStore) -> None:
    def copy(episodes: list[Episode]) -> list[Episode]:
        return [*episodes, replace(episodes[3], seed=99)]

    finding = only(make_demos(copy, features=VECTORS), "duplicate_episode")
    assert finding.episodes == (12,), "the copy, not the original"
    assert "12 = 3" in finding.what


def test_an_episode_that_is_nearly_there_twice(make_demos: MakeStore) -> None:
    """Cut at both ends, and through a lossy format."""

    def copy(episodes: list[Episode]) -> list[Episode]:
        arrays = {k: x[1:-1] for k, x in episodes[3].arrays.items()}
        twin = replace(episodes[3], arrays=arrays)
        noise = np.random.default_rng(0).normal(scale=1e-3, size=arrays[STATE].shape)
        return [*episodes, changed(twin, state=(arrays[STATE] + noise).astype(np.float32))]

    finding = only(make_demos(copy, features=VECTORS), "duplicate_episode")
    assert finding.episodes == (12,)
    assert "nearly" in finding.what


@pytest.mark.parametrize(
    ("late", "severity", "words"),
    [
        (3, "warning", "the state moves 3 steps before the action"),
        (-3, "info", "the state follows the action by 3 steps, 150 ms"),
        (-7, "warning", "the state follows the action by 7 steps, 350 ms"),
    ],
)
def test_actions_that_were_recorded_out_of_step(
    make_demos: MakeStore, late: int, severity: str, words: str
) -> None:
    def shift(episodes: list[Episode]) -> list[Episode]:
        return [changed(e, action=shifted(e.arrays[ACTION], late)) for e in episodes]

    report = check_store(make_demos(shift, features=VECTORS)).report
    (finding,) = [f for f in report.findings if f.check == "lag"]
    assert finding.severity == severity
    assert words in finding.what
    assert set(alarms(report)) <= {"lag"}


def shifted(x: np.ndarray, steps: int) -> np.ndarray:
    return x[np.clip(np.arange(len(x)) - steps, 0, len(x) - 1)]


def test_actions_that_are_not_of_the_kind_that_is_said(make_demos: MakeStore) -> None:
    path = make_demos(features=VECTORS, convention=replace(CONVENTION, action_kind="delta"))
    finding = only(path, "convention")
    assert "said to be delta" in finding.what
    assert "action_kind" in finding.fix


STAMP = "observation.timestamp"
STAMPED = {**VECTORS, STAMP: Feature(shape=(1,), unit="s")}


def stamped(episodes: list[Episode], stamps) -> list[Episode]:
    return [
        replace(e, arrays={**e.arrays, STAMP: np.float32(stamps(i, np.arange(len(e)) / 20.0))[:, None]})
        for i, e in enumerate(episodes)
    ]


@pytest.mark.parametrize(
    ("stamps", "where", "words"),
    [
        (lambda i, t: t, None, ""),
        (lambda i, t: t + 0.004 * np.sin(7 * t), None, ""),
        (lambda i, t: t + 0.5 * (t > 0.99) * (i == 5), (5, 20), "1 gap, up to 0.55 s, not 0.05 s"),
        (lambda i, t: np.where((i == 2) & (t > 1), t - 0.2, t), (2, 21), "1 time stamp that do not increase"),
        (lambda i, t: 1.7e9 + t, (0, 1), "do not increase"),
        (lambda i, t: 2 * t, (), "10 Hz apart, the control rate is 20 Hz"),
    ],
    ids=["exact", "jitter", "gap", "backward", "clock", "rate"],
)
def test_time_stamps(make_demos: MakeStore, stamps, where, words: str) -> None:
    path = make_demos(lambda episodes: stamped(episodes, stamps), features=STAMPED)
    if where is None:
        assert alarms(check_store(path).report) == {}
        return
    finding = check_store(path).report.findings[0]
    assert finding.check == "time_stamp"
    assert words in finding.what
    if where:
        assert (finding.episodes[0], finding.step) == where


def test_a_frozen_camera(make_demos: MakeStore, clean_episodes) -> None:
    front = clean_episodes[5].arrays[CAMERA].copy()
    front[20:35] = front[20]
    finding = only(make_demos(with_episode(5, front=front)), "frozen_frames")
    assert (finding.feature, finding.episodes, finding.step) == (CAMERA, (5,), 20)
    assert "15 frames (0.8 s)" in finding.what


def test_a_camera_at_half_the_rate(make_demos: MakeStore) -> None:
    def halve(episodes: list[Episode]) -> list[Episode]:
        return [changed(e, wrist=e.arrays[WRIST][np.arange(len(e)) // 2 * 2]) for e in episodes]

    finding = only(make_demos(halve), "repeated_frames")
    assert finding.feature == WRIST
    assert finding.episodes == tuple(range(12))


def test_a_camera_that_was_off(make_demos: MakeStore, clean_episodes) -> None:
    front = clean_episodes[9].arrays[CAMERA].copy()
    front[:4] = 0
    finding = only(make_demos(with_episode(9, front=front)), "blank_frames")
    assert (finding.episodes, finding.step) == ((9,), 0)
    assert "4 frames" in finding.what


def test_one_camera_under_two_names(make_demos: MakeStore) -> None:
    features = {**FEATURES, WRIST: FEATURES[CAMERA]}

    def same(episodes: list[Episode]) -> list[Episode]:
        return [changed(e, wrist=e.arrays[CAMERA]) for e in episodes]

    finding = only(make_demos(same, features=features), "same_camera")
    assert finding.severity == "error"
    assert WRIST in finding.what


@pytest.mark.parametrize(
    ("gripper", "alarm"),
    [("plus_closes", False), ("plus_opens", False), ("one_closes", True), ("none", False)],
)
def test_gripper_values_fit_their_convention(make_demos: MakeStore, gripper: str, alarm: bool) -> None:
    path = make_demos(features=VECTORS, convention=replace(CONVENTION, gripper=gripper))
    assert set(alarms(check_store(path).report)) == ({"convention"} if alarm else set())


def test_a_zero_one_gripper_is_not_minus_one_to_one(make_demos: MakeStore) -> None:
    def halved(episodes: list[Episode]) -> list[Episode]:
        return [
            changed(e, action=np.maximum(e.arrays[ACTION], [0, 0, 0]).astype(np.float32)) for e in episodes
        ]

    assert "from 0 to 1" in only(make_demos(halved, features=VECTORS), "convention").what


@pytest.mark.parametrize(
    ("tasks", "words", "episodes"),
    [
        (("push the puck", " "), "tasks without an instruction: reach", (1, 3, 5, 7, 9, 11)),
        (("push the puck", "Push  the puck"), "tasks push, reach have the same instruction", ()),
    ],
)
def test_instructions(make_demos: MakeStore, tasks, words: str, episodes) -> None:
    def instruct(demos: list[Episode]) -> list[Episode]:
        texts = dict(zip(("push", "reach"), tasks, strict=True))
        return [replace(e, task=Task(name=e.task.name, instruction=texts[e.task.name])) for e in demos]

    finding = only(make_demos(instruct, features=VECTORS), "instruction")
    assert words in finding.what
    assert finding.episodes == episodes


def test_unknown_conventions_are_noted_with_what_the_data_say(make_demos: MakeStore) -> None:
    path: Path = make_demos(features=VECTORS, convention=replace(CONVENTION, action_kind="unknown"))
    (finding,) = [f for f in check_store(path).report.findings if f.check == "convention"]
    assert finding.severity == "info"
    assert f"mode-data migrate {path} action_kind=absolute" in finding.fix
