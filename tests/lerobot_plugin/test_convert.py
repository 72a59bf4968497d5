"""Checkpoints convert both ways and act alike on both sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lerobot_policy_mode.command import main
from lerobot_policy_mode.modeling_mode import ModePolicy
from mode_policy.checkpoint import load_policy, save_checkpoint
from mode_policy.config import to_dict
from mode_policy.convention import Convention
from mode_policy.policy import MoDEPolicy
from mode_policy.types import STATE

from .. import toy
from .conftest import fresh


def checkpoint(folder: Path, images: bool) -> tuple[MoDEPolicy, MoDEPolicy]:
    """A checkpoint of ours whose averaged weights are not those of the optimizer."""
    averaged = toy.image_policy(0) if images else toy.policy(0)
    raw = toy.image_policy(1) if images else toy.policy(1)
    averaged.convention = Convention(fps=20.0, gripper="plus_closes", action_kind="delta")
    save_checkpoint(folder, averaged, raw.state_dict(), about={"step": 7, "task": {"name": "toy"}})
    return averaged.eval(), raw.eval()


@pytest.mark.parametrize("images", [False, True], ids=["states", "images"])
def test_there_and_back(tmp_path: Path, images: bool) -> None:
    averaged, raw = checkpoint(tmp_path / "ours", images)
    main(["to-lerobot", str(tmp_path / "ours"), str(tmp_path / "theirs")])
    policy = ModePolicy.from_pretrained(tmp_path / "theirs")
    for ours, theirs in ((averaged, policy.ema), (raw, policy.model)):
        for name, value in ours.state_dict().items():
            assert torch.equal(theirs.state_dict()[name], value), name
    batch = toy.image_batch(0) if images else toy.batch(0)
    seen = batch.observation
    noise = torch.randn(16, 4, 2)
    texts = [toy.INSTRUCTIONS.instructions[i] for i in (0, 1)] * 8
    as_lerobot = {STATE: seen.states[STATE][:, 0], "task": texts}
    as_lerobot |= {key: image[:, 0].permute(0, 3, 1, 2) / 255 for key, image in seen.images.items()}
    embedded = toy.INSTRUCTIONS.embed(texts)
    expected = averaged.act(
        type(seen)(states=seen.states, images=seen.images, instruction=embedded), noise=noise
    )
    assert torch.equal(policy.predict_action_chunk(as_lerobot, noise=noise), expected)

    main(["from-lerobot", str(tmp_path / "theirs"), str(tmp_path / "back")])
    first, second = (json.loads((tmp_path / n / "checkpoint.json").read_text()) for n in ("ours", "back"))
    for name in ("config", "features", "convention", "statistics", "instructions", "sha256"):
        assert first[name] == second[name], name
    assert to_dict(load_policy(tmp_path / "back").config) == to_dict(averaged.config)


def test_a_policy_trained_in_lerobot_acts_alike_here(dataset: Path, tmp_path: Path) -> None:
    policy = fresh(dataset, "cameras=[]").eval()
    policy.save_pretrained(tmp_path / "theirs")
    main(["from-lerobot", str(tmp_path / "theirs"), str(tmp_path / "ours")])
    ours = load_policy(tmp_path / "ours")
    assert ours.convention.fps == 10
    states = {key: torch.randn(3, 1, f.shape[0]) for key, f in ours.features.items() if key != "action"}
    noise = torch.randn(3, 4, 2)
    from mode_policy.types import Observation

    assert torch.equal(
        ours.act(Observation(states=states), noise=noise), policy.predict_action_chunk(states, noise=noise)
    )


@pytest.mark.parametrize("command", ["to-lerobot", "from-lerobot"])
def test_what_is_no_checkpoint_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as caught:
        main([command, str(tmp_path / "empty"), str(tmp_path / "out")])
    assert caught.value.code == 2
    assert (
        "is no checkpoint" if command == "to-lerobot" else "is no policy of LeRobot"
    ) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        main([command, str(tmp_path / "empty"), str(tmp_path)])
    assert "exists; give another destination" in capsys.readouterr().err


def test_policies_of_others_are_not_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lerobot.policies import make_policy_config

    make_policy_config("act", device="cpu").save_pretrained(tmp_path / "act")
    with pytest.raises(SystemExit):
        main(["from-lerobot", str(tmp_path / "act"), str(tmp_path / "out")])
    assert "policy of type 'act'; only 'mode' can be converted" in capsys.readouterr().err
