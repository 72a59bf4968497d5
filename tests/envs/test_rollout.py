"""Rollouts: the same results whatever the processes do."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from mode_envs import env_task, rendering_available
from mode_envs.fleet import _Fleet
from mode_envs.lanes import Video
from mode_envs.rollout import EpisodeSpec, noise_seed, rollout
from mode_envs.suites import EnvTask
from mode_policy.errors import ConfigError, SimulatorError
from mode_policy.types import Task

pytest.importorskip("metaworld")
pytest.importorskip("gym_pusht")

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


def test_recorded_episodes_have_frames():
    if not rendering_available()[0]:
        pytest.skip(rendering_available()[1])
    episodes = specs(REACH, seeds=2) + specs(PUSHT, seeds=0)
    video = Video(size=(40, 56), stride=7)
    results = rollout(Reacher(), episodes, execute=4, lanes=2, workers=1, record={1}, video=video)
    assert results[0].frames is None
    frames = results[1].frames
    steps = results[1].steps
    assert frames.shape == (1 + steps // 7 + (steps % 7 > 0), 40, 56, 3)
    assert frames.dtype == np.uint8
    assert frames.std() > 10
    assert results == rollout(Reacher(), episodes, execute=4, lanes=2, workers=0)
