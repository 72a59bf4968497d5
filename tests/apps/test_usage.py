"""``--help`` of the Hydra programs: every setting with its comment, and the groups' choices."""

import importlib
import sys

import pytest

from mode_policy.apps.cli import CONF, choices, compose

PROGRAMS = sorted(CONF)


def help_of(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    importlib.import_module(f"mode_policy.apps.{name}").main()
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_names_every_setting_and_group(name, monkeypatch, capsys):
    text = help_of(name, monkeypatch, capsys)
    settings = set(compose(name, [])) - {"hydra", *choices(name)}
    assert settings
    assert [key for key in sorted(settings) if f"\n{key}:" not in text] == []
    assert [group for group in choices(name) if f"\n  {group}" not in text] == []
    assert "defaults:" not in text
    assert "hydra:" not in text


def test_help_shows_comments_choices_and_the_call(monkeypatch, capsys):
    text = help_of("train", monkeypatch, capsys)
    assert text.startswith("mode-train and train.py: ")
    assert "uv run train.py [task=…]" in text
    assert "# scripted: demonstrations a task" in text
    assert "dense | shared_1_of_4 | top2_of_4" in text
