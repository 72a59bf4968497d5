"""The YAML files and the dataclasses describe the same thing."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from mode_envs import METAWORLD_INSTRUCTIONS
from mode_policy.apps.cli import compose, to_plain
from mode_policy.apps.config import EvaluateConfig, TrainConfig
from mode_policy.config import build, to_dict

CONF = Path(__file__).parents[2] / "conf"
OTHERS_TASKS = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero90")


def names(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def missing(cls, data: dict, where: str = "") -> list[str]:
    """Fields of a dataclass that cannot be overridden because YAML does not name them."""
    found = [f"{where}{f.name}" for f in fields(cls) if f.name not in data]
    for f in fields(cls):
        value = getattr(cls, f.name, None)
        inner = type(value) if is_dataclass(value) else f.type
        if is_dataclass(inner) and isinstance(data.get(f.name), dict):
            found += missing(inner, data[f.name], f"{where}{f.name}.")
    return found


def test_every_field_can_be_overridden():
    data = to_plain(compose("train", []))
    config = build(TrainConfig, data)
    assert missing(TrainConfig, data) == []
    for name in ("task", "dataset", "policy", "trainer", "evaluation"):
        assert missing(type(getattr(config, name)), data[name], f"{name}.") == []


def test_every_field_of_an_evaluation_can_be_overridden(tmp_path):
    data = to_plain(compose("evaluate", [f"checkpoint={tmp_path}"]))
    assert missing(EvaluateConfig, data) == []


@pytest.mark.parametrize("task", names("task"))
def test_every_task_composes(task):
    config = build(TrainConfig, to_plain(compose("train", [f"task={task}"])))
    assert config.task.name == task
    assert build(TrainConfig, to_dict(config)) == config


@pytest.mark.parametrize("group", ["model", "router", "experts", "sampler", "trainer"])
def test_every_choice_composes(group):
    for choice in names(group):
        overrides = [f"{group}={choice}", "trainer.minutes=1"]
        assert build(TrainConfig, to_plain(compose("train", overrides))), choice


def test_the_readme_speaks_of_known_instructions():
    readme = (CONF.parent / "README.md").read_text()
    asked = re.findall(r'instructions.embed\(\["(.+?)"\]\)', readme)
    assert asked
    assert set(asked) <= set(METAWORLD_INSTRUCTIONS.values())


def test_libero_is_configured():
    assert set(OTHERS_TASKS) <= set(names("task"))


def test_the_paper_model_has_its_size():
    config = build(TrainConfig, to_plain(compose("train", ["model=paper", "trainer=paper"])))
    d = config.policy.denoiser
    assert (d.dim, d.num_layers, d.num_heads, d.experts.num, d.experts.active) == (1024, 8, 8, 4, 2)
    assert (d.attention_dropout, d.experts.dropout) == (0.3, 0.1)
    assert (config.trainer.steps, config.trainer.batch_size) == (30000, 512)
