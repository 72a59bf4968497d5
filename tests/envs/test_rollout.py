"""Rollouts: the same results whatever the processes do."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from mode_envs import env_task, make, rendering_available
from mode_envs.demonstrate import Drawing
from mode_envs.drawing import draw
from mode_envs.fleet import _Fleet
from mode_envs.lanes import Advance, Begin, Lanes
from mode_envs.pusht import PushTEnv
from mode_envs.rollout import EpisodeSpec, noise_seed, rollout
from mode_envs.suites import EnvTask
from mode_policy.errors import ConfigError, SimulatorError
from mode_policy.types import Task

pytest.importorskip("metaworld")
pytest.importorskip("gym_pusht")

needs_gl = pytest.mark.skipif(not rendering_available()[0], reason=rendering_available()[1])
REACH, PICK, PUSHT = env_task("reach-v3"), env_task("pick-place-v3"), env_task("pusht")
HOSTILE = EnvTask(
    env_id="tests.envs.hostile_env:mode-tests/hostile-v0",  # gymnasium imports the module before the colon
    task=Task(name="hostile", instruction="suffer"),
    max_steps=20,
)


class Reacher:
    """Moves the hand to the goal, with noise; its answer depends on history, seeds and nothing else."""

    history = 2

    def __init__(self, action_size=4, chunk=6):
        self.shape = (chunk, action_size)
        self.calls = []

    def act(self, observations, instructions, noise_seeds):
        self.calls.append(list(noise_seeds))
        return np.stack([self.chunk(*each) for each in zip(observations, noise_seeds, strict=True)])

    def chunk(self, observation, noise_seed):
        state = observation["observation.state"]
        assert state.shape[0] == self.history
        noise = np.random.default_rng(noise_seed).normal(0, 0.3, self.shape)
        aim = np.zeros(self.shape[1])
        if len(aim) == 4:
            aim[:3] = 10 * (state[-1, 36:39] - state[-1, :3]) + (state[-1, :3] - state[0, :3])
        return (aim + noise).astype(np.float32)


def specs(*tasks, seeds=3):
    short = [replace(task, max_steps=60) for task in tasks]
    return [EpisodeSpec(task=task, seed=seed) for seed in range(seeds) for task in short]


def test_results_do_not_depend_on_workers():
    episodes = specs(REACH, PICK)
    policies = [Reacher() for _ in range(3)]
    results = [
        rollout(policy, episodes, execute=4, lanes=4, workers=workers)
        for policy, workers in zip(policies, (0, 1, 2), strict=True)
    ]
    assert results[0] == results[1] == results[2]
    assert policies[0].calls == policies[1].calls == policies[2].calls  # same batches, not only same results
    assert [(r.task, r.seed) for r in results[0]] == [(e.task.task.name, e.seed) for e in episodes]
    assert any(r.success and r.steps < 60 for r in results[0])
    assert any(not r.success and r.steps == 60 for r in results[0])


def test_an_episode_does_not_depend_on_its_neighbours():
    episodes = specs(REACH, seeds=3)
    together = rollout(Reacher(), episodes, execute=5, lanes=3, workers=0)
    alone = [rollout(Reacher(), [e], execute=5, lanes=1, workers=0)[0] for e in episodes]
    assert together == alone


def test_batches_and_decisions():
    policy, seen = Reacher(), []
    episodes = specs(REACH, PUSHT, seeds=1)[:1] * 3
    episodes = [replace(e, seed=i) for i, e in enumerate(episodes)]
    results = rollout(policy, episodes, execute=6, lanes=2, workers=0, on_episode=lambda *e: seen.append(e))
    assert max(len(call) for call in policy.calls) == 2
    for spec, result in zip(episodes, results, strict=True):
        decisions = [n for call in policy.calls for seed, n in call if seed == noise_seed(spec)]
        assert decisions == list(range(-(-result.steps // 6)))
    assert sorted(index for index, _ in seen) == [0, 1, 2]
    assert all(results[index] is result for index, result in seen)
    assert noise_seed(episodes[0]) != noise_seed(replace(episodes[0], task=PICK))


def test_pusht_reports_best_coverage():
    result, *_ = rollout(Reacher(action_size=2), specs(PUSHT, seeds=1), execute=6, lanes=1, workers=0)
    assert 0 <= result.metrics["coverage"] <= 1
    assert rollout(Reacher(), [], execute=1) == []


def test_a_killed_worker_changes_nothing(monkeypatch):
    episodes = specs(REACH, PICK)
    undisturbed = rollout(Reacher(), episodes, execute=4, lanes=4, workers=0)
    fleets = []
    start = _Fleet.__init__
    monkeypatch.setattr(_Fleet, "__init__", lambda self, *a: (fleets.append(self), start(self, *a))[1])

    class Killer(Reacher):
        def act(self, *observed):
            if len(self.calls) == 6:
                os.kill(fleets[0]._workers[1].pid, signal.SIGKILL)
            return super().act(*observed)

    disturbed = rollout(Killer(), episodes, execute=4, lanes=4, workers=2)
    assert disturbed == undisturbed
    assert sum(r.restarts for r in disturbed) >= 1
    assert all(worker._process.poll() is not None for worker in fleets[0]._workers)


def hostile(count=2):
    return [EpisodeSpec(task=HOSTILE, seed=seed) for seed in range(count)]


def run_hostile(workers=1, **kwargs):
    options = kwargs.pop("env")
    return rollout(
        Reacher(action_size=1), hostile(), execute=3, lanes=2, workers=workers, options=options, **kwargs
    )


@pytest.mark.parametrize(("what", "timeout"), [("abort", 60.0), ("hang", 5.0)])
def test_a_crash_or_hang_in_the_middle_changes_nothing(tmp_path, what, timeout):
    undisturbed = run_hostile(workers=0, env={})
    env = {"what": what, "at": 8, "flag": str(tmp_path / "done")}
    disturbed = run_hostile(env=env, timeout=timeout)
    assert disturbed == undisturbed
    assert [r.restarts for r in disturbed] == [1, 1]


def test_a_simulator_that_keeps_crashing_is_given_up():
    with pytest.raises(
        SimulatorError, match=r"(?s)after 1 restarts of tests.envs.hostile_env.*seed 0.*driver on fire"
    ):
        run_hostile(env={"what": "abort"}, max_restarts=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_is_reported_with_its_traceback(workers):
    with pytest.raises(SimulatorError, match=r"(?s)hostile-v0 with seed 0 raised.*step.*fell off the table"):
        run_hostile(workers=workers, env={"what": "raise"})


def test_policies_that_do_not_fit_are_refused():
    class Short(Reacher):
        def act(self, observations, *rest):
            return np.zeros((len(observations), 2, 4))

    class Broken(Reacher):
        def act(self, observations, *rest):
            return np.full((len(observations), 6, 4), np.nan)

    with pytest.raises(SimulatorError, match=r"shape \(1, 2, 4\); expected \(1, at least 3, A\)"):
        rollout(Short(), specs(REACH, seeds=1), execute=3, workers=0)
    with pytest.raises(SimulatorError, match="non-finite action for mode/metaworld-reach-v3"):
        rollout(Broken(), specs(REACH, seeds=1), execute=3, workers=0)
    with pytest.raises(ConfigError, match="execute 0"):
        rollout(Reacher(), specs(REACH, seeds=1), execute=0)


@needs_gl
def test_videos_are_drawn_afterwards():
    episodes = specs(REACH, seeds=2)
    results = rollout(Reacher(), episodes, execute=4, lanes=2, workers=1, film=7)
    assert results == rollout(Reacher(), episodes, execute=4, lanes=2, workers=0)
    drawings, drawn = [], {}
    for spec, result in zip(episodes, results, strict=True):
        assert len(result.snapshots) == 1 + result.steps // 7 + (result.steps % 7 > 0)
        drawings.append(
            Drawing(
                env_id=spec.task.env_id,
                max_steps=spec.task.max_steps,
                snapshots=result.snapshots[:3],
                cameras=("corner2",),
                size=(40, 56),
            )
        )
    draw(drawings, lambda i, pictures: drawn.update({i: pictures}), workers=2)
    assert sorted(drawn) == [0, 1]
    for pictures in drawn.values():
        frames = pictures["observation.images.corner2"]
        assert frames.shape == (3, 40, 56, 3)
        assert frames.dtype == np.uint8
        assert frames.std() > 10


class Watcher(Reacher):
    """Remembers the pictures that decisions were based on."""

    def act(self, observations, *rest):
        self.seen = [*getattr(self, "seen", []), *(o["observation.images.top"] for o in observations)]
        return super().act(observations, *rest)


@pytest.mark.parametrize("execute", [1, 3])
def test_only_pictures_that_are_seen_are_drawn(monkeypatch, execute):
    """With a history of two, two of each chunk's; and those are the ones of an environment that draws all."""
    drawn = 0
    picture = PushTEnv.picture

    def counted(self, *arguments):
        nonlocal drawn
        drawn += 1
        return picture(self, *arguments)

    episodes = [EpisodeSpec(task=replace(PUSHT, max_steps=6), seed=3)]
    run = {
        "execute": execute,
        "lanes": 1,
        "workers": 0,
        "options": {"obs_mode": "both", "image_size": (24, 24)},
    }
    policy = Watcher(action_size=2)
    monkeypatch.setattr(PushTEnv, "picture", counted)
    (result,) = rollout(policy, episodes, **run)
    chunks = 6 // execute
    assert drawn == 1 + chunks * min(2, execute)
    env = make("pusht", obs_mode="both", image_size=(24, 24))
    observation, _ = env.reset(seed=3)
    pictures = [observation["observation.images.top"]] * 2
    again = Reacher(action_size=2)
    for decision in range(chunks):
        assert np.array_equal(policy.seen[decision], np.stack(pictures[-2:]))
        state = np.stack([observation["observation.state"]] * 2)
        for action in again.chunk({"observation.state": state}, (noise_seed(episodes[0]), decision))[
            :execute
        ]:
            observation, *_ = env.step(np.clip(action, 0, 512))
            pictures.append(observation["observation.images.top"])
    assert result.steps == 6


def test_starts_and_repeats_name_an_episode():
    spec = EpisodeSpec(task=REACH, seed=3)
    others = [replace(spec, initial_state=0), replace(spec, initial_state=1), replace(spec, repeat=1)]
    assert len({noise_seed(s) for s in (spec, *others)}) == 4
    results = rollout(Reacher(), [spec, replace(spec, repeat=1)], execute=6, lanes=2, workers=0)
    assert [r.repeat for r in results] == [0, 1]
    assert results[0] != replace(results[1], repeat=0)


def test_environments_of_the_task_at_hand_are_kept():
    """Ten lanes that end in one tick must not build nine environments anew."""
    lanes = Lanes()
    begin = Begin(lane=0, env_id=PUSHT.env_id, max_steps=1, seed=0, history=1)
    lanes([replace(begin, lane=i) for i in range(20)])
    envs = {id(e.env) for e in lanes._episodes.values()}
    lanes([Advance(lane=i, actions=np.zeros((1, 2), np.float32)) for i in range(20)])
    lanes([replace(begin, lane=i) for i in range(20)])
    assert {id(e.env) for e in lanes._episodes.values()} == envs
    lanes.close()
