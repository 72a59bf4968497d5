"""Demonstrations: successes only, in a fixed order, clean actions under noise."""

import os
import signal
from collections import deque

import numpy as np
import pytest

from mode_envs import demonstrate, env_task, features, make, make_expert, suite
from mode_envs.collect import collect, episode_seed
from mode_envs.demonstrate import Attempt, Demonstrator, Fault, RemoteDemonstrator
from mode_envs.recordings import Recordings
from mode_envs.task_queue import WITHOUT_SUCCESS, CollectSettings, TaskProgress, TaskQueue
from mode_envs.worker import Worker
from mode_policy.errors import ConfigError, SimulatorError

pytest.importorskip("metaworld")

TASKS = [env_task("pick-place-v3"), env_task("drawer-close-v3"), env_task("reach-v3")]


def kept(episodes, where):
    """Keep what is handed out, whatever follows."""
    for episode in episodes:
        where.append(episode)
        yield episode


def contents(episodes):
    return [(e.task.name, e.seed, {k: v.tobytes() for k, v in e.arrays.items()}) for e in episodes]


def test_same_episodes_in_the_same_order_with_any_number_of_workers():
    collections = [collect(TASKS, 2, seed=0, workers=workers, noise=0.5) for workers in (1, 2)]
    one, two = (contents(c) for c in collections)
    assert one == two
    assert [name for name, _, _ in one] == [t.task.name for t in TASKS for _ in range(2)]
    counts = [{k: (t.attempts, t.successes) for k, t in c.report.tasks.items()} for c in collections]
    assert counts[0] == counts[1]
    assert all(successes == 2 for _, successes in counts[0].values())


def replay(episode, settle_steps):
    """Execute the recorded actions; return the steps after the first success."""
    env = make(episode.task.name)
    env.reset(seed=episode.seed)
    solved = [env.step(action)[-1]["success"] for action in episode.arrays["action"]]
    return len(solved) - 1 - solved.index(True)


def test_recording():
    collection = collect([env_task("reach-v3")], 2, seed=3, workers=1, settle_steps=4)
    for number, episode in enumerate(collection):
        state, action = episode.arrays["observation.state"], episode.arrays["action"]
        assert episode.seed == episode_seed(3, number)
        assert state.dtype == action.dtype == np.float32
        assert state.shape == (len(episode), 39)
        assert action.shape == (len(episode), 4)
        assert np.abs(action).max() <= 1
        assert replay(episode, 4) == 4
    assert collection.report.attempts == collection.report.successes == 2
    assert collection.report.seconds > 0


def test_noise_disturbs_the_motion_but_not_the_record():
    plain = {"env_id": "mode/metaworld-reach-v3", "max_steps": 500, "seed": 5}
    demonstrate = Demonstrator()
    clean = demonstrate(Attempt(**plain))
    noisy = demonstrate(Attempt(**plain, noise=0.5))
    assert not np.array_equal(clean["observation.state"][5], noisy["observation.state"][5])
    expert = make_expert("reach-v3")
    for state, action in zip(noisy["observation.state"], noisy["action"], strict=True):
        assert np.array_equal(expert.act({"observation.state": state}), action)
    again = demonstrate(Attempt(**plain, noise=0.5))
    assert np.array_equal(noisy["action"], again["action"])


HOPELESS = {"noise": 5.0, "noise_probability": 1.0, "max_attempts": 4}
"""Under so much noise reaching succeeds, and picking and placing does not."""


def test_a_hopeless_expert_costs_its_own_task_alone():
    tasks = [TASKS[0], TASKS[2]]
    collection, found = collect(tasks, 2, workers=2, **HOPELESS), []
    with pytest.raises(SimulatorError, match=r"1 of 2 tasks .*\('pick-place-v3': 0 of 4 attempts \(0%\)\)"):
        deque(kept(collection, found), maxlen=0)
    assert [name for name, _, _ in contents(found)] == ["reach-v3", "reach-v3"]
    assert collection.report.given_up == ["pick-place-v3"]
    assert (collection.report.missing, collection.report.complete) == (2, 2)
    (left,) = collect(tasks, 2, workers=1, skip={"reach-v3": 1}, allow_incomplete=True, **HOPELESS)
    assert contents([left]) == contents(found[1:])


def test_an_expert_that_raises_has_failed_in_that_attempt_alone(monkeypatch):
    monkeypatch.setattr(demonstrate, "_spawn", lambda: Worker("tests.envs.faulty_expert:make"))
    collection = collect([TASKS[2]], 3, workers=1)
    episodes, reach = list(collection), collection.report.tasks["reach-v3"]
    failed = set(reach.faults)
    assert failed
    assert len(episodes) == reach.successes == reach.attempts - len(failed) == 3
    tried = [episode_seed(0, number) for number in range(reach.attempts) if number not in failed]
    assert [episode.seed for episode in episodes] == tried
    fault = next(iter(reach.faults.values()))
    assert "in act\n    self._steps //= self._divisor" in fault.traceback
    assert fault.error.startswith("ZeroDivisionError: ")


def queue(episodes, **settings):
    """The work with one task, whose outcomes a test makes up."""
    given = {"seed": 0, "noise": 0.0, "noise_probability": 0.5, "settle_steps": 5, "no_ops_below": 0.0}
    given |= {"max_attempts": None, "options": {}, "cameras": (), "size": None, "recordings": None}
    made = CollectSettings(episodes=episodes, **given | settings)
    return TaskQueue(TASKS[0], made, TaskProgress(episodes), 0)


def drive(work, solved, at_once):
    """Let ``at_once`` processes make attempts, which end in any order; return the numbers handed out."""
    running, handed, rng = [], [], np.random.default_rng(0)
    while not work.finished:
        while len(running) < at_once and (job := work.next_job()) is not None:
            running.append(job)
        job = running.pop(rng.integers(len(running)))
        work.take(job, {"action": np.full((1, 1), job.number)} if job.number in solved else None)
        handed += [int(arrays["action"][0, 0]) for _, arrays in work.ready()]
    return handed


def test_a_recording_that_lacks_what_is_observed_now_is_made_again(tmp_path):
    recordings = Recordings(tmp_path)
    job = queue(1, recordings=recordings).next_job()
    whole = {key: np.zeros((2, *feature.shape)) for key, feature in features(TASKS[0].env_id).items()}
    path = recordings.path(job.request, 0, job.number)
    recordings.write(path, whole)
    assert queue(1, recordings=recordings).next_job() is None
    recordings.write(path, {"action": whole["action"]})
    assert queue(1, recordings=recordings).next_job() == job


@pytest.mark.parametrize("at_once", [1, 8])
def test_what_is_given_up_does_not_depend_on_the_processes(at_once):
    hopeless = queue(50)
    assert drive(hopeless, {WITHOUT_SUCCESS + 1}, at_once) == []
    assert hopeless.progress.missing == 50
    assert hopeless.progress.attempts < WITHOUT_SUCCESS + 40
    late = queue(2)
    assert drive(late, {WITHOUT_SUCCESS - 1}, at_once) == [WITHOUT_SUCCESS - 1]
    assert late.progress.missing == 1
    faulty = queue(1)
    while (job := faulty.next_job()) is not None:
        faulty.take(job, Fault("ValueError: x"))
    assert set(faulty.progress.faults) == set(range(faulty.progress.attempts))
    assert (faulty.progress.missing, faulty.finished) == (1, True)
    fine = queue(2)
    assert drive(fine, {3, 9, 10}, at_once) == [3, 9]
    assert fine.progress.missing == 0


def test_wrong_values_are_named():
    with pytest.raises(ConfigError, match="'pusht' has no scripted expert"):
        collect(suite("pusht"), 1)
    with pytest.raises(ConfigError, match="episodes is 0"):
        collect(TASKS, 0)
    with pytest.raises(ConfigError, match="'reach-v3' is given twice"):
        collect([TASKS[2], TASKS[2]], 1)
    with pytest.raises(ConfigError, match="workers is 0"):
        collect(TASKS, 1, workers=0)


def test_survives_the_death_of_a_worker(monkeypatch):
    alive = []
    start = Worker.__init__

    def started(self, factory):
        start(self, factory)
        alive.append(self)

    monkeypatch.setattr(Worker, "__init__", started)
    undisturbed = contents(collect(TASKS[1:], 2, workers=2))

    begin = RemoteDemonstrator.start

    def begun(self, attempt):
        attempts.append(attempt)
        begin(self, attempt)
        if len(attempts) == 3:
            os.kill(self._worker.pid, signal.SIGKILL)

    attempts = []
    monkeypatch.setattr(RemoteDemonstrator, "start", begun)
    assert contents(collect(TASKS[1:], 2, workers=2)) == undisturbed
    assert len(alive) == 5
    assert all(worker._process.poll() is not None for worker in alive)


def test_abandoned_collection_ends_its_processes(monkeypatch):
    alive = []
    start = Worker.__init__

    def started(self, factory):
        start(self, factory)
        alive.append(self)

    monkeypatch.setattr(Worker, "__init__", started)
    collection = collect(TASKS, 5, workers=1)
    next(collection)
    collection.close()
    assert all(worker._process.poll() is not None for worker in alive)
