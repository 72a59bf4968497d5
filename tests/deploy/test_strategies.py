"""Strategies as pure objects: which action at which tick, and when to ask."""

import numpy as np
import pytest

from mode_policy.deploy.config import StrategyConfig
from mode_policy.deploy.strategies import (
    Asynchronous,
    Chunk,
    Delays,
    RealTimeChunking,
    Synchronous,
    TemporalEnsembling,
    make_strategy,
)
from mode_policy.errors import ConfigError


def chunk(observed, length=8, start=None, offset=0.0):
    actions = np.stack([np.arange(length) + offset, np.zeros(length)], 1).astype(np.float32)
    return Chunk(observed=observed, start=observed if start is None else start, actions=actions)


def play(strategy, delay, ticks, length=8):
    """Run a strategy against inference that takes ``delay`` ticks; return chunk and index of each action.

    As in the control loop: a chunk's first action is for the tick of its observation, later by the ticks for
    which the robot was held meanwhile.
    """
    chunks, pending, played, delays, moves = [], None, [], Delays(), 0
    for tick in range(ticks):
        if pending is not None and tick - pending[0] >= delay:
            observed, moves_then = pending
            chunks = [*chunks, chunk(observed, length, start=tick - (moves - moves_then))][-strategy.keep :]
            delays, pending = delays.add(tick - observed), None
        if pending is None and strategy.wants(tick, chunks, delays.estimate):
            pending = (tick, moves)
            if delay == 0:
                chunks = [*chunks, chunk(tick, length)][-strategy.keep :]
                pending = None
        action = strategy.action(tick, chunks)
        moves += action is not None
        played.append(None if action is None else (chunks[-1].observed, round(float(action[0]))))
    return played


def test_synchronous_waits_and_then_plays_from_the_beginning():
    played = play(Synchronous(execute=3), delay=2, ticks=10)
    assert played == [None, None, (0, 0), (0, 1), (0, 2), None, None, (5, 0), (5, 1), (5, 2)]


def test_without_delay_all_are_the_plain_receding_horizon():
    expected = [(k // 3 * 3, k % 3) for k in range(12)]
    assert play(Synchronous(execute=3), 0, 12) == expected
    late = [p for p in play(Asynchronous(execute=3), 0, 12) if p is None]
    assert late == []


def test_asynchronous_never_waits_again_and_skips_what_is_too_late():
    played = play(Asynchronous(execute=4), delay=2, ticks=16)
    assert played[:2] == [None, None], "the first chunk has to be waited for"
    assert played[2:4] == [(0, 0), (0, 1)], "held until then, so nothing was missed"
    assert all(p is not None for p in played[2:])
    for (observed, index), (before, _) in zip(played[3:], played[2:], strict=False):
        if observed != before:
            assert index == 2, "what was for the two ticks of inference is skipped"


def test_asynchronous_uses_up_a_chunk_while_the_next_is_late_and_then_stops():
    strategy, last = Asynchronous(execute=2), chunk(0, length=5)
    assert strategy.wants(2, [last], delay=0)
    assert [strategy.action(t, [last]) is None for t in range(7)] == [False] * 5 + [True] * 2


@pytest.mark.parametrize("delay", [0, 1, 3, 5])
def test_the_next_chunk_is_asked_for_in_time(delay):
    strategy = Asynchronous(execute=6)
    asked = next(t for t in range(20) if strategy.wants(t, [chunk(0)], delay))
    assert asked == max(1, 6 - delay)


def test_real_time_chunking_says_what_will_be_executed_meanwhile():
    strategy, running = RealTimeChunking(execute=4), chunk(10, length=8)
    rest = strategy.continuation(12, [running], delay=3)
    assert rest.fixed == 3
    np.testing.assert_array_equal(rest.actions[:, 0], [2, 3, 4, 5, 6, 7])
    for i in range(rest.fixed):
        np.testing.assert_array_equal(rest.actions[i], strategy.action(12 + i, [running]))
    assert strategy.continuation(17, [running], delay=3).fixed == 1, "no more is left"
    assert strategy.continuation(18, [running], delay=3) is None
    assert strategy.continuation(0, [], delay=3) is None


def test_a_chunk_that_ends_is_thought_to_go_on():
    """Positions with their last velocity; all else, displacements and grippers, as it was."""
    strategy, running = RealTimeChunking(execute=4, extend=3, positions=(0,)), chunk(10, length=8)
    running.actions[:, 1] = 2 * np.arange(8)
    rest = strategy.continuation(15, [running], delay=2)
    assert rest.fixed == 2
    np.testing.assert_array_equal(rest.actions[:, 0], [5, 6, 7, 8, 9, 10])
    np.testing.assert_array_equal(rest.actions[:, 1], [10, 12, 14, 14, 14, 14])
    last = strategy.continuation(17, [running], delay=5)
    assert last.fixed == 1, "what is thought to follow is not executed"
    np.testing.assert_array_equal(last.actions[:, 0], [7, 8, 9, 10])
    assert strategy.continuation(18, [running], delay=5) is None


def test_what_is_not_finite_is_not_continued():
    strategy, running = RealTimeChunking(execute=4, extend=2), chunk(0, length=8)
    running.actions[3] = np.nan
    rest = strategy.continuation(1, [running], delay=5)
    assert (rest.fixed, len(rest.actions)) == (2, 2 + 2)
    assert np.isfinite(rest.actions).all()
    assert strategy.continuation(3, [running], delay=1) is None


def test_a_new_chunk_fades_in():
    """Position 0 goes on with its velocity where the old chunk ends; dimension 1 opens and closes."""
    strategy = RealTimeChunking(execute=4, blend=3, positions=(0,), grippers=(1,))
    old, new = chunk(0, length=8), chunk(5, length=8, offset=105)
    new.actions[:, 1] = 1.0
    joined = strategy.join(7, [old], new)
    assert (joined.observed, joined.start) == (5, 5)
    share = np.array([3, 2, 1]) / 4  # of the old one: its last action, and what is thought to follow
    expected = share * [7, 8, 9] + (1 - share) * [107, 108, 109]
    np.testing.assert_allclose(joined.actions[:, 0], [105, 106, *expected, 110, 111, 112])
    np.testing.assert_array_equal(joined.actions[:, 1], 1.0)
    np.testing.assert_array_equal(new.actions[:, 0], 105 + np.arange(8))


def test_chunks_that_agree_are_joined_as_they_are():
    strategy = RealTimeChunking(execute=4, blend=3, positions=(0, 1))
    for tick in (5, 7, 8):
        new = chunk(4, length=8, offset=4)
        np.testing.assert_allclose(strategy.join(tick, [chunk(0)], new).actions, new.actions, atol=1e-6)


def test_nothing_fades_in_from_standing_still():
    strategy, new = RealTimeChunking(execute=4, blend=3), chunk(9, length=8, offset=50)
    assert strategy.join(9, [], new) is new
    assert strategy.join(9, [chunk(0, length=8)], new) is new, "the old one had ended a tick before"
    assert strategy.join(8, [chunk(0, length=8)], chunk(8, offset=50)).actions[0, 0] < 50
    assert RealTimeChunking(execute=4).join(8, [chunk(0)], new) is new, "it is not asked for"
    broken = chunk(0, length=8)
    broken.actions[2:] = np.nan
    assert strategy.join(5, [broken], new) is new, "what is not finite was not executed"
    assert np.isfinite(strategy.join(2, [broken], chunk(1, offset=9)).actions).all()
    late = strategy.join(8, [chunk(0)], chunk(1, length=8, offset=9))  # its last action alone is left
    np.testing.assert_array_equal(late.actions[:7, 0], 9 + np.arange(7))
    for other in (Synchronous(execute=3), Asynchronous(execute=3)):
        assert other.join(5, [chunk(0)], new) is new
    assert TemporalEnsembling(decay=0.1, every=1, keep=2).join(5, [chunk(0)], new) is new


def test_ensembling_averages_what_is_said_about_a_tick():
    strategy = TemporalEnsembling(decay=0.5, every=1, keep=3)
    chunks = [chunk(0, offset=0), chunk(1, offset=10), chunk(2, offset=20)]
    weights = np.exp(-0.5 * np.arange(3))
    said = np.array([3 + 0, 2 + 10, 1 + 20])
    np.testing.assert_allclose(strategy.action(3, chunks)[0], weights @ said / weights.sum())
    assert strategy.action(9, chunks)[0] == 7 + 20, "only the newest reaches that far"
    assert strategy.action(10, chunks) is None


def test_the_oldest_prediction_counts_most():
    strategy = TemporalEnsembling(decay=5.0, every=1, keep=2)
    assert strategy.action(1, [chunk(0, offset=0), chunk(1, offset=10)])[0] == pytest.approx(1, abs=0.1)


def test_delays_are_estimated_by_the_longest_recent_one():
    delays = Delays(window=3)
    assert delays.estimate == 1
    for ticks, expected in ((2, 2), (5, 5), (1, 5), (1, 5), (1, 1)):
        delays = delays.add(ticks)
        assert delays.estimate == expected


def test_configuration():
    assert make_strategy(StrategyConfig(), 10, 8, (0, 1)) == RealTimeChunking(
        execute=5, extend=3, blend=3, positions=(0, 1)
    )
    assert make_strategy(StrategyConfig(execute=8, extend=0, blend=0), 10, 8) == RealTimeChunking(execute=8)
    assert make_strategy(StrategyConfig(), 10, 3).execute == 3
    assert make_strategy(StrategyConfig(), 1, 1).execute == 1
    assert make_strategy(StrategyConfig(name="asynchronous"), 10, 8) == Asynchronous(execute=8)
    assert make_strategy(StrategyConfig(name="synchronous", execute=3), 10, 8) == Synchronous(execute=3)
    assert make_strategy(StrategyConfig(name="ensembling", every=3), 10, 8).keep == 4
    with pytest.raises(ConfigError, match=r"execute=11, but the policy predicts chunks of 10"):
        make_strategy(StrategyConfig(execute=11), 10, 8)
