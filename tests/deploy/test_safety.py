"""Nothing that the filter would not send reaches a robot, whatever a policy proposes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mode_policy.config import build
from mode_policy.deploy.config import ActionConfig, LateConfig, SafetyConfig
from mode_policy.deploy.interventions import Intervention, names
from mode_policy.deploy.safety import FilterState, SafetyFilter
from mode_policy.errors import ConfigError

RATE = 50.0
LOW, HIGH = np.array([-1.0, -2.0, 0.0]), np.array([1.0, 2.0, 1.0])


def make(kind="position", measured=None, gripper=(2,), scale=1.0, late=None, **safety):
    action = build(
        ActionConfig, {"kind": kind, "gripper": gripper, "measured": measured, "scale": scale}, "action"
    )
    return SafetyFilter(
        action,
        build(SafetyConfig, {"margin": 0.0, **safety}, "safety"),
        build(LateConfig, late or {}, "late"),
        dim=3,
        rate=RATE,
        low=LOW,
        high=HIGH,
    )


def play(safety, proposals, state=None):
    """Return the verdicts for a stream of proposals."""
    verdicts, current = [], FilterState()
    for proposal in proposals:
        verdict = safety.step(current, None if proposal is None else np.array(proposal, float), state)
        current = verdict.state
        verdicts.append(verdict)
    return verdicts


number = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-3, 3)
proposals = st.lists(st.none() | st.tuples(number, number, number), min_size=1, max_size=60)
LATE = [
    {"behaviour": "hold"},
    {"behaviour": "slow_to_stop", "stop_seconds": 0.2},
    {"behaviour": "safe_pose", "pose": [0.5, -0.5, 0.0]},
]


@settings(max_examples=80, deadline=None)
@given(
    stream=proposals,
    limited=st.booleans(),
    late=st.sampled_from(LATE),
    start=st.tuples(st.floats(-1, 1), st.floats(-2, 2)),
)
def test_positions_keep_every_limit(stream, limited, late, start):
    limits = {"velocity": 2.0, "acceleration": 20.0, "jerk": 400.0}
    if not limited:
        limits = {"velocity": 1e6} if late["behaviour"] == "safe_pose" else {}
    safety = make(measured=(0, 1, -1), late=late, **limits)
    verdicts = play(safety, stream, state=np.array(start))
    sent = [v.action for v in verdicts if v.action is not None]
    if not sent:
        assert not any(p is not None and np.isfinite(p).all() for p in stream)
        return
    commands = np.stack(sent)
    assert np.isfinite(commands).all()
    assert (commands >= LOW - 1e-8).all()
    assert (commands <= HIGH + 1e-8).all()
    if limited:
        motion = np.concatenate([[np.array(start)] * 3, commands[:, :2]])
        for order, most in ((1, 2.0), (2, 20.0), (3, 400.0)):
            assert np.abs(np.diff(motion, order, axis=0)).max() * RATE**order <= most * (1 + 1e-5)


@settings(max_examples=80, deadline=None)
@given(
    stream=proposals,
    limited=st.booleans(),
    late=st.sampled_from(LATE[:2]),
    place=st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)),
)
def test_deltas_keep_bounds_and_workspace(stream, limited, late, place):
    limits = {"velocity": 30.0, "acceleration": 600.0, "jerk": 20000.0} if limited else {}
    box = {"workspace_low": [-0.1, -0.1], "workspace_high": [0.1, 0.1]}
    safety = make("delta", measured=(0, 1, -1), scale=0.01, late=late, **limits, **box)
    here, state = np.array(place, float), FilterState()
    for proposal in stream:
        verdict = safety.step(state, None if proposal is None else np.array(proposal, float), here)
        state = verdict.state
        if verdict.action is None:
            continue
        assert np.isfinite(verdict.action).all()
        assert (verdict.action >= np.minimum(LOW, 0) - 1e-9).all()
        assert (verdict.action <= HIGH + 1e-9).all()
        if limited:
            assert np.abs(verdict.action[:2]).max() <= 30.0 / RATE * (1 + 1e-6)
        after = here + 0.01 * verdict.action[:2]
        # Outside of the box it may stay or come back, and never go further out.
        assert (np.abs(after) <= np.maximum(np.abs(here), 0.1) + 1e-9).all()
        here = after


@pytest.mark.parametrize("bad", [[np.nan, 0, 0], [np.inf, 0, 0], [0.1, 0.2], [[0, 0, 0]], []])
def test_what_is_no_action_is_not_sent(bad):
    safety = make()
    first = play(safety, [[0.5, 0.5, 1.0]])[0]
    verdict = safety.step(first.state, np.array(bad, float))
    np.testing.assert_array_equal(verdict.action, [0.5, 0.5, 1.0])
    assert verdict.interventions == Intervention.ACTION_INVALID
    nothing = safety.step(FilterState(), np.array(bad, float))
    assert nothing.action is None


def test_a_valid_action_passes_unchanged():
    verdict = play(make(), [[0.25, -1.5, 1.0]])[0]
    np.testing.assert_array_equal(verdict.action, [0.25, -1.5, 1.0])
    assert not verdict.interventions


def test_bounds_of_data_and_user():
    verdict = play(make(margin=0.1, high=[0.5, 9.0, 9.0]), [[3.0, 3.0, 0.5]])[0]
    np.testing.assert_allclose(verdict.action, [0.5, 2.4, 0.5])
    assert verdict.interventions == Intervention.BOUNDS
    free = play(make(dataset_bounds=False), [[30.0, 3.0, 0.5]])[0]
    np.testing.assert_array_equal(free.action, [30.0, 3.0, 0.5])


def test_hold_is_where_the_last_command_led():
    position = play(make(), [[0.1, 0, 1], [0.2, 0, 1], None, None])
    np.testing.assert_allclose([v.action[0] for v in position], [0.1, 0.2, 0.2, 0.2])
    delta = play(make("delta"), [[0.1, 0, 1], [0.2, 0, 1], None, None])
    np.testing.assert_allclose([v.action[0] for v in delta], [0.1, 0.2, 0.0, 0.0])
    np.testing.assert_allclose([v.action[2] for v in delta], 1.0), "the gripper stays"
    assert [v.interventions for v in delta[2:]] == [Intervention.LATE] * 2
    assert delta[-1].state.late == 2


def test_slow_to_stop_fades():
    late = {"behaviour": "slow_to_stop", "stop_seconds": 4 / RATE}
    position = play(make(late=late), [[0.0, 0, 1], [0.4, 0, 1]] + [None] * 5)
    np.testing.assert_allclose([v.action[0] for v in position], [0, 0.4, 0.7, 0.9, 1.0, 1.0, 1.0], rtol=1e-12)
    delta = play(make("delta", late=late), [[0.4, 0, 1]] + [None] * 5)
    np.testing.assert_allclose([v.action[0] for v in delta], [0.4, 0.3, 0.2, 0.1, 0, 0], atol=1e-12)


def test_safe_pose_is_approached_within_the_limits():
    late = {"behaviour": "safe_pose", "pose": [-0.5, 0, 0]}
    verdicts = play(make(late=late, velocity=5.0), [[0.5, 0, 1]] + [None] * 30)
    motion = np.array([v.action[0] for v in verdicts])
    assert np.abs(np.diff(motion)).max() <= 5.0 / RATE
    assert motion[-1] == pytest.approx(-0.5)
    assert verdicts[-1].action[2] == 1.0, "the gripper keeps what it holds"


def test_the_gripper_is_debounced():
    wanted = [1, 1, 0, 1, 0, 0, 0, 1, 1, 1]
    verdicts = play(make(gripper_ticks=3, gripper_threshold=0.5), [[0, 0, w] for w in wanted])
    assert [int(v.action[2]) for v in verdicts] == [1, 1, 1, 1, 1, 1, 0, 0, 0, 1]
    assert sum(bool(v.interventions & Intervention.GRIPPER) for v in verdicts) == 5


def test_each_limit_is_named():
    limits = {"velocity": 1.0, "acceleration": 10.0, "jerk": 500.0}
    fast = play(make(**limits), [[0, 0, 0], [0.9, 0, 0]])[1]
    reasons = set(names(fast.interventions))
    assert reasons == {"velocity", "acceleration", "jerk"}
    plain = play(make(velocity=1.0), [[0, 0, 0], [0.9, 0, 0]])[1]
    assert set(names(plain.interventions)) == {"velocity"}, "what is not configured is not blamed"
    braking = play(make(**limits), [[x, 0, 0] for x in np.minimum(np.arange(80) * 0.0002 * np.arange(80), 5)])
    assert any(v.interventions & (Intervention.BRAKING | Intervention.BOUNDS) for v in braking)


def test_a_workspace_without_a_measurement_allows_no_motion():
    box = {"workspace_low": [-0.1, -0.1], "workspace_high": [0.1, 0.1]}
    safety = make("delta", measured=(0, 1, -1), scale=0.01, **box)
    verdict = safety.step(FilterState(), np.array([0.5, 0.5, 1.0]), None)
    np.testing.assert_array_equal(verdict.action, [0, 0, 1])
    assert verdict.interventions & Intervention.WORKSPACE


def test_demonstrations_without_a_range_are_refused():
    with pytest.raises(ConfigError, match=r"the smallest action is .*nan.* limits nothing"):
        SafetyFilter(
            ActionConfig(),
            SafetyConfig(),
            LateConfig(),
            dim=2,
            rate=RATE,
            low=[0.0, np.nan],
            high=[1.0, 1.0],
        )


def test_a_robot_that_had_time_to_stop_sets_off_from_rest():
    limits = {"velocity": 2.0, "acceleration": 20.0, "jerk": 400.0}
    verdicts = play(make(**limits), [[0.0, 0, 0]] + [[0.9, 0, 0]] * 6)
    moving = verdicts[-1]
    assert moving.action[0] - verdicts[-2].action[0] > 0.01
    rested = make(**limits).step(moving.state.at_rest(), np.array([0.9, 0, 0]))
    step = rested.action[0] - moving.action[0]
    assert 0 < step <= min(20.0 / RATE**2, 400.0 / RATE**3) * (1 + 1e-6)


def test_a_reason_is_passed_on():
    first = play(make(), [[0.5, 0.5, 1.0]])[0]
    verdict = make().step(first.state, None, None, Intervention.OBSERVATION_STALE)
    assert verdict.interventions == Intervention.OBSERVATION_STALE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gripper": (3,)}, "names dimension 3, the action has 3"),
        ({"measured": (0, 1)}, "has 2 entries, the action has 3 dimensions"),
        ({"velocity": [1.0, 2.0]}, "velocity has 2 numbers, the action has 3 dimensions"),
        ({"low": 5.0}, "the limits leave nothing"),
        ({"acceleration": 1.0}, "a limit of acceleration needs one of velocity"),
        ({"velocity": 1.0, "jerk": 1.0}, "a limit of jerk needs one of acceleration"),
        ({"velocity": -1.0}, "velocity=-1.0 must be positive"),
        ({"workspace_low": [0.0]}, "two corners"),
        ({"late": {"behaviour": "safe_pose"}}, "needs the pose"),
        ({"late": {"behaviour": "safe_pose", "pose": [0.0]}}, "must have 3 numbers"),
        ({"kind": "delta", "late": LATE[2]}, "needs actions that are positions"),
        ({"late": LATE[2]}, "without a limit the robot would jump there"),
        ({"low": np.nan}, "finite number"),
        ({"velocity": np.inf}, "finite number"),
        ({"late": {"behaviour": "safe_pose", "pose": [np.nan, 0.0, 0.0]}}, "finite number"),
        ({"kind": "position", "scale": 2.0}, "scale belongs to delta actions"),
        (
            {"measured": (0, -1, -1), "workspace_low": [0, 0], "workspace_high": [1, 1]},
            "each of the 1 dimensions",
        ),
    ],
)
def test_configurations_that_contradict_themselves(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make(**arguments)
