"""Real-time chunking: a chunk continues the actions that are still to be executed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.rollout.inference.rtc import _normalize_prev_actions_length, supports_rtc_inference

from lerobot_policy_mode.batches import observed
from lerobot_policy_mode.realtime import left_over_prefix
from mode_policy.diffusion.prefix import Prefix, soft_mask
from mode_policy.errors import DataError

from .conftest import batch_of, fresh


def test_lerobot_believes_it(dataset: Path) -> None:
    assert supports_rtc_inference(fresh(dataset, "n_obs_steps=1"))
    assert not supports_rtc_inference(fresh(dataset, "n_obs_steps=2"))  # RTC hands over one observation


def test_committed_actions_are_kept(dataset: Path) -> None:
    policy = fresh(dataset, "chunk_size=6").eval()
    policy.config.rtc_config = RTCConfig(execution_horizon=4)
    batch, noise = batch_of(dataset, policy, size=1), torch.randn(1, 6, 2)
    free = policy.predict_action_chunk(batch, noise=noise)
    left = torch.tensor([[100.0, 200.0], [110.0, 190.0], [120.0, 180.0]])
    # LeRobot pads what is left with rows of zeros, which are not actions.
    padded = _normalize_prev_actions_length(left, 4)
    held = policy.predict_action_chunk(batch, noise=noise, inference_delay=2, prev_chunk_left_over=padded)
    assert torch.equal(held[0, :2], left[:2])
    assert not torch.equal(held[0, 2:], free[0, 2:])
    # The same as our own policy does with the same prefix.
    actions = torch.zeros(1, 6, 2)
    actions[0, :3] = left
    prefix = Prefix(actions=actions, weights=torch.tensor([soft_mask(6, 2, 3, "linear")]))
    seen = policy._observe(observed(batch, policy.keys, policy.model.features), batch)
    assert torch.equal(held, policy.ema.act(seen, noise=noise, prefix=prefix))
    first = policy.predict_action_chunk(batch, noise=noise, inference_delay=0, prev_chunk_left_over=None)
    assert torch.equal(first, free)


SHAPE, CPU = (1, 5, 2), torch.device("cpu")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (RTCAttentionSchedule.EXP, soft_mask(5, 1, 3, "exponential")),
        (RTCAttentionSchedule.LINEAR, soft_mask(5, 1, 3, "linear")),
        (RTCAttentionSchedule.ZEROS, [1.0, 0, 0, 0, 0]),
        (RTCAttentionSchedule.ONES, [1.0, 1, 1, 0, 0]),
    ],
)
def test_lerobots_schedules_have_their_meaning(schedule: RTCAttentionSchedule, expected: list[float]) -> None:
    config = RTCConfig(execution_horizon=3, prefix_attention_schedule=schedule)
    prefix = left_over_prefix(torch.ones(5, 2), 1, None, config, shape=SHAPE, device=CPU)
    torch.testing.assert_close(prefix.weights, torch.tensor([expected]))


def test_nothing_is_held_where_nothing_is_left() -> None:
    off = RTCConfig(enabled=False)
    for left, config in (
        (None, None),
        (torch.zeros(0, 2), None),
        (torch.zeros(4, 2), None),
        (torch.ones(4, 2), off),
    ):
        assert left_over_prefix(left, 1, None, config, shape=SHAPE, device=CPU) is None


def test_more_than_a_chunk_may_be_left() -> None:
    prefix = left_over_prefix(torch.ones(9, 2), 8, None, None, shape=SHAPE, device=CPU)
    assert prefix.weights.tolist() == [[1.0] * 5]


def test_actions_of_another_robot_are_named() -> None:
    with pytest.raises(DataError, match=r"prev_chunk_left_over has the shape \(4, 3\); .*\(T, 2\)"):
        left_over_prefix(torch.ones(4, 3), 1, None, None, shape=SHAPE, device=CPU)
