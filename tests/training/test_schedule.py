"""Learning rate and averaging, against the authors' implementation."""

import json

import pytest

from mode_policy.training.schedule import ema_decay, tri_stage
from tests.published import GOLDEN

SCHEDULES = json.loads((GOLDEN / "schedules.json").read_text())


@pytest.mark.parametrize(("step", "decay"), SCHEDULES["ema_decay"])
def test_ema_decay(step, decay):
    assert ema_decay(step) == pytest.approx(decay, rel=1e-12)


@pytest.mark.parametrize(("step", "lr"), SCHEDULES["tri_stage_lr"]["step_lr"])
def test_tri_stage(step, lr):
    assert tri_stage(step, SCHEDULES["tri_stage_lr"]["total_steps"], peak=1e-4) == pytest.approx(lr, rel=1e-9)


def test_shares_and_steps_agree():
    assert tri_stage(3000, 45000) == pytest.approx(tri_stage(3000 / 45000, 1.0))


def test_no_warmup_begins_at_the_peak():
    assert tri_stage(0, 100, warmup=0.0, hold=0.0) == pytest.approx(1.0)
