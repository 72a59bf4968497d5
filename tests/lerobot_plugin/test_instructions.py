"""Instructions travel with the weights; new ones are embedded, missing ones asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lerobot_policy_mode.modeling_mode import ModePolicy
from mode_policy.encoders.language import ENCODERS
from mode_policy.errors import ConfigError, DataError

from .conftest import TASKS, batch_of, fresh, metadata, write_dataset

pytestmark = pytest.mark.usefixtures("toy_encoder")


def test_instructions_are_those_of_the_data_set(dataset: Path) -> None:
    policy = fresh(dataset, "language=toy").eval()
    assert policy.instructions.texts == TASKS
    batch, noise = batch_of(dataset, policy), torch.randn(18, 4, 2)
    assert set(batch["task"]) == set(TASKS)
    actions = policy.predict_action_chunk(batch, noise=noise)
    embedded = policy.instructions.table().embed(batch["task"])
    swapped = policy.predict_action_chunk({**batch, "task": list(batch["task"])[::-1]}, noise=noise)
    assert embedded.shape == (18, 8)
    assert not torch.equal(actions, swapped)


def test_a_checkpoint_needs_no_encoder(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = fresh(dataset, "language=toy").eval()
    policy.save_pretrained(tmp_path / "saved")
    batch, noise = batch_of(dataset, policy), torch.randn(18, 4, 2)
    expected = policy.predict_action_chunk(batch, noise=noise)
    monkeypatch.delitem(ENCODERS, "toy")
    again = ModePolicy.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.predict_action_chunk(batch, noise=noise), expected)
    with pytest.raises(ConfigError, match=r"unknown text encoder 'toy'"):
        again.predict_action_chunk({**batch, "task": ["Turn the T."] * 18})


def test_a_new_instruction_is_embedded_and_mentioned(dataset: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = fresh(dataset, "language=toy").eval()
    batch = batch_of(dataset, policy)
    for _ in range(2):
        policy.predict_action_chunk({**batch, "task": ["Turn the T."] * 18})
    assert caplog.text.count("not trained on the instruction 'Turn the T.'") == 1
    assert policy.instructions.texts == TASKS


def test_a_missing_instruction_is_asked_for(dataset: Path, tmp_path: Path) -> None:
    policy = fresh(dataset, "language=toy").eval()
    batch = {key: value for key, value in batch_of(dataset, policy).items() if key != "task"}
    with pytest.raises(DataError, match=r"no instruction, .* It knows: Push the T., Pull the T."):
        policy.predict_action_chunk(batch)
    # Where only one is known, it is meant.
    single = fresh(write_dataset(tmp_path / "single", lengths=(4,)), "language=toy").eval()
    batch, noise = batch_of(tmp_path / "single", single), torch.randn(4, 4, 2)
    named = single.predict_action_chunk(batch, noise=noise)
    assert torch.equal(single.predict_action_chunk({**batch, "task": [""] * 4}, noise=noise), named)


def test_finetuning_adds_the_instructions_of_its_data(dataset: Path, tmp_path: Path) -> None:
    first = fresh(write_dataset(tmp_path / "single", lengths=(4,)), "language=toy")
    first.save_pretrained(tmp_path / "saved")
    meta = metadata(dataset)
    policy = ModePolicy.from_pretrained(tmp_path / "saved", dataset_stats=meta.stats, dataset_meta=meta)
    assert policy.instructions.texts == TASKS
    new = fresh(dataset, "language=toy").instructions
    assert torch.equal(policy.instructions.embeddings, new.embeddings)
    policy.save_pretrained(tmp_path / "finetuned")
    again = ModePolicy.from_pretrained(tmp_path / "finetuned")
    assert torch.equal(again.instructions.embeddings, new.embeddings)


def test_a_configuration_without_its_weights_embeds_anew(dataset: Path) -> None:
    """``lerobot-train --config_path=…`` without ``--resume`` starts from fresh weights."""
    first = fresh(dataset, "language=toy")
    meta = metadata(dataset)
    policy = ModePolicy(first.config, dataset_stats=meta.stats, dataset_meta=meta)
    policy.eval().predict_action_chunk(batch_of(dataset, policy))
    assert torch.equal(policy.instructions.embeddings, first.instructions.embeddings)


def test_language_needs_instructions(dataset: Path) -> None:
    policy = fresh(dataset)
    policy.config.language = "toy"
    policy.config.demonstrations = None
    with pytest.raises(DataError, match=r"no instructions; .*--policy.language=null"):
        ModePolicy(policy.config, dataset_stats=metadata(dataset).stats)
