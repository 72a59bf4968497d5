"""Inference beside the loop: in a thread, in a process that is killed, on a server that goes away."""

import os
import signal
import time

import numpy as np
import pytest

from mode_policy.deploy.client import PolicyClient
from mode_policy.deploy.endpoints import DelayedEndpoint, EndpointLostError, RemoteEndpoint
from mode_policy.deploy.inference import Inference
from mode_policy.deploy.inference_worker import ProcessEndpoint
from mode_policy.deploy.policy_service import LocalEndpoint
from mode_policy.errors import InferenceError
from mode_policy.evaluation.runner import PolicyRunner
from mode_policy.types import STATE
from tests import toy
from tests.deploy.conftest import CHUNK, EXECUTE, Running, request, wait_for


def answer(inference, tick=0, **changes):
    """Ask once and wait."""
    wait_for(lambda: inference.ready)
    assert inference.submit(tick, request(**changes))
    assert not inference.submit(tick, request()), "one at a time"
    found = []
    wait_for(lambda: inference.error or found.append(inference.poll()) or found[-1])
    return found[-1] if found else None


def test_the_policy_answers_as_in_evaluation(service):
    """The same weights, observation and seed: the same actions, to an engine's rounding."""
    state, seed = np.array([[0.2, -0.3, 0.4]], np.float32), (7, 3)
    expected = PolicyRunner(toy.policy(chunk=CHUNK, execute=EXECUTE)).act(
        [{STATE: state}], ["go left"], [seed]
    )
    (found,) = service.infer([{STATE: state, "prompt": "go left", "seed": list(seed)}])
    np.testing.assert_allclose(found, expected[0], atol=2e-6)


def test_in_this_process(service):
    with Inference(LocalEndpoint(service)) as inference:
        metadata = inference.wait_until_ready(30)
        assert metadata["execute"] == EXECUTE
        assert metadata["action_max"] == pytest.approx(toy.arrays()["action"].max(0), rel=1e-6)
        first, second = answer(inference, 5), answer(inference, 6)
        assert first.actions.shape == (CHUNK, 2)
        assert (first.tick, first.first, second.tick, second.first) == (5, True, 6, False)
        assert inference.poll() is None, "an answer is given once"


def test_an_answer_of_an_earlier_episode_is_dropped(service):
    with Inference(DelayedEndpoint(LocalEndpoint(service), 0.3)) as inference:
        inference.wait_until_ready(30)
        inference.submit(3, request())
        inference.discard()
        wait_for(lambda: inference.ready)
        assert inference.poll() is None


def test_waiting_ends_with_the_answer_or_in_time(service):
    with Inference(DelayedEndpoint(LocalEndpoint(service), 0.2)) as inference:
        inference.wait_until_ready(30)
        inference.submit(0, request())
        inference.wait(time.monotonic() + 0.02)
        assert inference.poll() is None
        inference.wait(time.monotonic() + 30)
        assert inference.poll() is not None


@pytest.mark.parametrize("niceness", [5, 0])
def test_a_process_gives_way_to_the_loop_with_all_its_threads(checkpoint, niceness):
    own = os.getpriority(os.PRIO_PROCESS, 0)
    endpoint = ProcessEndpoint(checkpoint, niceness=niceness, threads=2)
    with Inference(endpoint) as inference:
        inference.wait_until_ready(120)
        answer(inference, 1)
        threads = os.listdir(f"/proc/{endpoint.pid}/task")
        assert {os.getpriority(os.PRIO_PROCESS, int(t)) for t in threads} == {min(19, own + niceness)}
    assert os.getpriority(os.PRIO_PROCESS, 0) == own, "the loop's stays"


def test_a_killed_process_is_replaced(checkpoint):
    endpoint = ProcessEndpoint(checkpoint)
    with Inference(endpoint) as inference:
        inference.wait_until_ready(120)
        before = endpoint.pid
        assert answer(inference, 1).actions.shape == (CHUNK, 2)
        os.kill(before, signal.SIGKILL)
        inference.submit(2, request())
        wait_for(lambda: inference.losses == 1)
        assert f"inference process {before} ended (exit code -9)" in inference.trouble
        found = answer(inference, 3)
        assert found.tick == 3
        assert found.first, "its time says nothing about the next"
        assert endpoint.pid != before
        assert inference.trouble == ""
    with pytest.raises(ProcessLookupError):
        os.kill(endpoint.pid, 0)


def test_a_hanging_process_is_replaced(checkpoint):
    endpoint = ProcessEndpoint(checkpoint, timeout=1.0)
    with Inference(endpoint) as inference:
        inference.wait_until_ready(120)
        os.kill(endpoint.pid, signal.SIGSTOP)
        inference.submit(0, request())
        wait_for(lambda: inference.losses == 1)
        assert "did not answer within 1 s" in inference.trouble
        assert answer(inference, 1).tick == 1


def test_what_a_process_refuses_is_told(checkpoint, tmp_path):
    with Inference(ProcessEndpoint(checkpoint)) as inference:
        inference.wait_until_ready(120)
        assert answer(inference, prompt="go lefft") is None
        assert "Did you mean 'go left'" in str(inference.error)
        assert not inference.ready
    with (
        Inference(ProcessEndpoint(tmp_path)) as inference,
        pytest.raises(InferenceError, match="is no checkpoint"),
    ):
        inference.wait_until_ready(120)


def test_a_process_ends_with_its_owner(checkpoint):
    endpoint = ProcessEndpoint(checkpoint)
    endpoint.open()
    endpoint._connection.close()  # as the system does when the owner dies
    assert endpoint._process.wait(20) == 0
    with pytest.raises(EndpointLostError):
        endpoint.infer(request())


def test_a_server_that_went_away_and_came_back(service):
    first = Running(service)
    client = PolicyClient(first.address)
    with Inference(RemoteEndpoint(client)) as inference:
        inference.wait_until_ready(30)
        assert answer(inference).actions.shape == (CHUNK, 2)
        first.close()
        inference.submit(1, request())
        wait_for(lambda: inference.losses == 1)
        assert not inference.ready
        second = Running(service, port=first.port)
        assert answer(inference, 2).tick == 2
        second.close()


def test_a_server_that_never_comes():
    with (
        Inference(RemoteEndpoint(PolicyClient("ws://127.0.0.1:9"))) as inference,
        pytest.raises(InferenceError, match=r"no inference within 0\.3 s: no server at"),
    ):
        inference.wait_until_ready(0.3)


class Strange:
    """An endpoint that answers with something else."""

    def open(self):
        return {}

    def infer(self, request):
        return {"actions": np.zeros(3)}

    def close(self):
        pass


def test_answers_that_are_no_chunk_end_inference():
    with Inference(Strange()) as inference:
        inference.wait_until_ready(5)
        assert answer(inference) is None
        assert "actions of shape (3,); expected (C, A)" in str(inference.error)


class Changing:
    """An endpoint that is lost once and comes back with another policy."""

    def __init__(self, **changes):
        self.said = {"chunk": 4, "history": 1, "action_min": [0.0, 0.0], "action_max": [1.0, 1.0]}
        self.changes, self.opened, self.closed = changes, 0, 0

    def open(self):
        self.opened += 1
        return self.said | (self.changes if self.opened > 1 else {})

    def infer(self, request):
        if self.opened == 1:
            raise EndpointLostError("gone")
        return {"actions": np.zeros((4, 2))}

    def close(self):
        self.closed += 1


def test_another_policy_is_not_taken_for_the_same():
    with Inference(Changing(action_max=[9.0, 9.0], title="new")) as inference:
        inference.wait_until_ready(5)
        assert answer(inference) is None
        assert "another policy answers now, with other action_max; start again" in str(inference.error)
    with Inference(Changing(title="new")) as inference:
        inference.wait_until_ready(5)
        inference.submit(0, request())
        wait_for(lambda: inference.losses == 1)
        assert answer(inference, 3).tick == 3, "what the loop was not built around may change"


def test_actions_of_another_robot_end_inference():
    endpoint = Changing()
    endpoint.opened = 1
    endpoint.infer = lambda request: {"actions": np.zeros((4, 7))}
    with Inference(endpoint) as inference:
        inference.wait_until_ready(5)
        assert answer(inference) is None
        assert "actions of shape (4, 7); expected (C, 2)" in str(inference.error)
    assert endpoint.closed, "whatever ended it"
