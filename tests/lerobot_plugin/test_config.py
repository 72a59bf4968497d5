"""The configuration: one name for each setting in both worlds, readable by LeRobot, decodable again."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import draccus
import pytest
import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig

from lerobot_policy_mode.configuration_mode import NAMES, ModeConfig, TriStageSchedulerConfig
from mode_policy.config import PolicyConfig, flatten, to_dict
from mode_policy.errors import ConfigError, DataError
from mode_policy.training.schedule import tri_stage

from .conftest import Line, config


def test_every_setting_of_the_policy_can_be_given() -> None:
    """Negative control: a setting that is added to `PolicyConfig` alone fails here."""
    known = {field.name for field in fields(ModeConfig)}
    assert {NAMES.get(field.name, field.name) for field in fields(PolicyConfig)} <= known


def test_defaults_are_those_of_the_policy() -> None:
    assert ModeConfig(device="cpu").policy_config(()) == PolicyConfig()


def test_settings_have_the_names_that_hydra_gives_them() -> None:
    made = config("sampler.name=heun", "denoiser.experts.num=8", "denoiser.router.goal=true", "n_obs_steps=3")
    ours = made.policy_config(("front",))
    assert (ours.sampler.name, ours.denoiser.experts.num, ours.denoiser.router.goal) == ("heun", 8, True)
    assert (ours.history, ours.chunk, ours.execute, ours.cameras) == (3, 4, 2, ("front",))
    back = ModeConfig.of_policy(ours, device="cpu", cameras=["front"])
    assert flatten(to_dict(back.policy_config(("front",)))) == flatten(to_dict(ours))


def test_everything_survives_json(tmp_path: Path) -> None:
    made = config("vision.size=[64,32]", "vision.crop=null", "state_hidden=[8,4]", "cameras=[a,b]")
    made.demonstrations = {"features": {}, "statistics": {"action": {"min": [0.1, -1e-7]}}, "width": 0}
    made.save_pretrained(tmp_path)
    again = PreTrainedConfig.from_pretrained(tmp_path)
    assert again == made
    assert draccus.decode(Line, draccus.encode(Line(made))).policy == made


def test_settings_can_be_changed_when_a_checkpoint_is_read(tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    again = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=["--sampler.steps=3"])
    assert again.sampler.steps == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("n_action_steps=9",), r"execute=9 actions of a chunk of 4"),
        (("chunk_size=0",), r"policy.chunk: .*greater than or equal to 1 \(got 0\)"),
        (("state_hidden=[8]",), r"state_hidden needs the width of the output, state_tokens"),
    ],
)
def test_values_that_cannot_be_used_are_named(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(*flags).policy_config(())


def test_nested_values_are_held_to_their_range_when_they_are_read() -> None:
    with pytest.raises(draccus.ParsingError) as caught:
        config("denoiser.dim=15")
    assert "dim=15 is not a multiple of num_heads=2" in str(caught.value.__cause__)


def test_lerobots_normalisation_is_refused() -> None:
    message = r"'STATE'.*normalises by itself; use --policy.normalize_state"
    with pytest.raises(ConfigError, match=message):
        ModeConfig(device="cpu", normalization_mapping={"STATE": NormalizationMode.MEAN_STD})
    with pytest.raises(draccus.ParsingError, match=message):
        config('normalization_mapping={"STATE": "MEAN_STD"}')


def test_without_action_or_observation_there_is_no_policy() -> None:
    with pytest.raises(DataError, match=r"needs a feature 'action'"):
        config().validate_features()


@pytest.mark.parametrize(("steps", "given"), [(40, None), (40, 10), (1, None)])
def test_the_schedule_is_the_authors(steps: int, given: int | None) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=2.0)
    warmup = 0.02 if given is None else given / steps
    schedule = TriStageSchedulerConfig(num_warmup_steps=given).build(optimizer, steps)
    for step in range(steps):
        assert optimizer.param_groups[0]["lr"] == 2.0 * tri_stage(step, steps, warmup=warmup)
        optimizer.step()
        schedule.step()


def test_a_schedule_without_decay_is_refused() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ConfigError, match=r"leave no part of 10 steps for the decay"):
        TriStageSchedulerConfig(num_warmup_steps=10).build(optimizer, 10)
