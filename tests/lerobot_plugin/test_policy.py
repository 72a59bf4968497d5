"""The policy in LeRobot is `MoDEPolicy`: the same losses, the same actions, the same averages."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from lerobot.policies import make_policy, make_pre_post_processors
from torch import Tensor

from lerobot_policy_mode.modeling_mode import ModePolicy
from mode_policy.errors import CheckpointError, DataError
from mode_policy.training.schedule import ema_decay
from mode_policy.types import STATE, Batch, Observation

from .conftest import CAMERA, batch_of, config, edit_json, fresh, metadata

CHUNK = "observation.images.image"


def ours(batch: dict, history: int) -> Batch:
    """The batch as our own loader would give it, made without the plug-in."""
    values: dict[str, Tensor] = {k: batch[k] for k in (STATE, "observation.environment_state")}
    images = (batch[CAMERA] * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()
    assert images.shape[1] == history
    return Batch(
        observation=Observation(states=values, images={CHUNK: images}),
        actions=batch["action"],
        action_is_pad=batch["action_is_pad"],
    )


@pytest.mark.parametrize("history", [1, 2])
def test_losses_and_actions_are_those_of_our_policy(dataset: Path, history: int) -> None:
    policy = fresh(dataset, f"n_obs_steps={history}")
    batch = batch_of(dataset, policy)
    same = ours(batch, history)
    pre, post = make_pre_post_processors(policy.config, dataset_stats=metadata(dataset).stats)
    batch = pre(batch)
    torch.manual_seed(3)
    loss, figures = policy.train().forward(batch)
    torch.manual_seed(3)
    expected = policy.model.train()(same)
    assert torch.equal(loss, expected.total)
    assert figures["denoising_loss"] == expected.denoising.item()
    assert figures["load_balance_loss"] == expected.load_balance.item()

    policy.eval()
    noise = torch.randn(18, 4, 2)
    actions = policy.predict_action_chunk(batch, noise=noise)
    assert torch.equal(actions, policy.ema.act(same.observation, noise=noise))
    assert torch.equal(post(actions), actions)


def test_padding_has_no_part_in_the_loss(dataset: Path) -> None:
    policy = fresh(dataset).train()
    batch = batch_of(dataset, policy)
    assert batch["action_is_pad"].any()

    def loss(changed: dict) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        mean = policy.forward(changed)[0]
        torch.manual_seed(0)
        return mean, policy.forward(changed, reduction="none")[0]

    mean, each = loss(batch)
    is_pad = batch["action_is_pad"]
    other = {**batch, "action": torch.where(is_pad[..., None], 511.0, batch["action"])}
    torch.testing.assert_close(loss(other), (mean, each), rtol=0, atol=0)
    assert each.shape == (18,)
    # Another order of the same sums.
    torch.testing.assert_close(each.mean(), mean, rtol=1e-6, atol=0)
    with pytest.raises(DataError, match=r"no 'action_is_pad'; LeRobotDataset gives it"):
        policy.forward({k: v for k, v in batch.items() if k != "action_is_pad"})


def test_a_weighted_loss_has_a_weighted_gradient(dataset: Path) -> None:
    """What LeRobot's sample weighting does with ``reduction="none"``: one of weight 0 teaches nothing."""
    policy = fresh(dataset, "loss.load_balance=0").train()
    batch = batch_of(dataset, policy)
    weight = torch.arange(18.0)

    def gradient(actions: Tensor) -> Tensor:
        torch.manual_seed(0)
        each = policy.forward({**batch, "action": actions}, reduction="none")[0]
        policy.zero_grad()
        ((each * weight).sum() / weight.sum()).backward()
        return policy.model.denoiser.out.weight.grad.clone()

    changed = batch["action"].clone()
    changed[0] += 100
    assert torch.equal(gradient(batch["action"]), gradient(changed))
    changed[1] += 100
    assert not torch.equal(gradient(batch["action"]), gradient(changed))


def test_figures_are_plain_numbers(dataset: Path) -> None:
    policy = fresh(dataset, "denoiser.experts.num=5").train()
    _, figures = policy.forward(batch_of(dataset, policy))
    assert all(type(value) is float for value in figures.values())
    shares = [figures[f"expert_{n}"] for n in range(5)]
    assert sum(shares) == pytest.approx(1)
    assert 0 < figures["router_entropy"] <= 1


def test_the_average_is_that_of_our_trainer(dataset: Path) -> None:
    policy = fresh(dataset, "ema_power=0.5").train()
    expected = copy.deepcopy(policy.ema)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-2)
    for step in range(1, 4):
        policy.forward(batch_of(dataset, policy))[0].backward()
        optimizer.step()
        policy.update()
        decay = ema_decay(step, power=0.5)
        for mean, own in zip(expected.parameters(), policy.model.parameters(), strict=True):
            mean.data.lerp_(own.data, 1 - decay)
    assert int(policy.ema_updates) == 3
    for (name, mean), value in zip(expected.named_parameters(), policy.ema.parameters(), strict=True):
        assert torch.equal(mean, value), name
    own = dict(policy.model.named_parameters())
    assert any(not torch.equal(own[name], value) for name, value in policy.ema.named_parameters())
    assert not policy.ema.training
    assert policy.train().model.training
    # Validation, too, is that of the averaged weights.
    torch.manual_seed(0)
    loss = policy.eval().forward(batch_of(dataset, policy))[0]
    torch.manual_seed(0)
    assert torch.equal(loss, policy.ema(ours(batch_of(dataset, policy), 1)).total)


def test_every_trained_parameter_gets_a_gradient(dataset: Path) -> None:
    """Of experts that nobody chose one of zero: processes that average gradients wait for nobody."""
    policy = fresh(dataset, "denoiser.experts.num=5").train()
    loss, figures = policy.forward(batch_of(dataset, policy, size=1))
    assert any(figures[f"expert_{n}"] == 0 for n in range(5))
    loss.backward()
    groups = policy.get_optim_params()
    assert all(p.grad is not None for group in groups for p in group["params"])
    # What LeRobot shards by name is there.
    (unit,) = policy._fsdp_wrap_modules
    assert sum(type(module).__name__ == unit for module in policy.model.modules()) == 2


def test_only_the_network_is_trained_and_only_matrices_decay(dataset: Path) -> None:
    policy = fresh(dataset, "freeze_routers=true")
    decay, keep = policy.get_optim_params()
    trained = {id(p) for p in (*decay["params"], *keep["params"])}
    assert trained == {id(p) for name, p in policy.model.named_parameters() if ".router." not in name}
    assert (decay["weight_decay"], keep["weight_decay"]) == (0.05, 0.0)


def test_actions_come_from_the_newest_observations(dataset: Path) -> None:
    policy = fresh(dataset, "n_obs_steps=2").eval()
    step = batch_of(dataset, policy)
    frames = [{key: step[key][i : i + 1, -1] for key in policy.config.input_features} for i in range(5)]
    noise = torch.randn(1, 4, 2)
    taken = [policy.select_action(frame, noise=noise) for frame in frames]

    def chunk(*seen: int) -> Tensor:
        stacked = {key: torch.stack([frames[i][key] for i in seen], 1) for key in frames[0]}
        return policy.predict_action_chunk(stacked, noise=noise)[0]

    # Before the first observation there is none; a chunk is used for two steps.
    first, second, third = chunk(0, 0), chunk(1, 2), chunk(3, 4)
    expected = [first[0], first[1], second[0], second[1], third[0]]
    assert torch.equal(torch.cat(taken), torch.stack(expected))
    policy.reset()
    assert torch.equal(policy.select_action(frames[3], noise=noise)[0], chunk(3, 3)[0])
    single = {key: value[:, 0] for key, value in batch_of(dataset, policy).items() if key in frames[0]}
    with pytest.raises(DataError, match=r"sees 2 observations .* comes with 1: .*--policy.n_obs_steps=1"):
        policy.predict_action_chunk(single)


def test_half_precision_is_autocast(dataset: Path) -> None:
    policy = fresh(dataset, "dtype=bfloat16").train()
    full = fresh(dataset).train()
    batch = batch_of(dataset, policy)
    torch.manual_seed(0)
    half_loss = policy.forward(batch)[0]
    torch.manual_seed(0)
    full_loss = full.forward(batch)[0]
    assert half_loss.dtype == torch.float32
    assert not torch.equal(half_loss, full_loss)
    torch.testing.assert_close(half_loss, full_loss, rtol=0.05, atol=0)  # eight bits of mantissa
    half_loss.backward()
    assert policy.eval().predict_action_chunk(batch).dtype == torch.float32


def test_only_chosen_features_are_seen(dataset: Path) -> None:
    policy = fresh(dataset, "cameras=[]", "state_keys=[observation.state]")
    assert sorted(policy.model.features) == ["action", STATE]
    assert list(policy.config.input_features) == [STATE]
    assert policy.model.convention.fps == 10
    assert policy.model.features[STATE].names == ("s0", "s1")
    assert policy.model.features["action"].names == ("a0", "a1")
    with pytest.raises(DataError, match=r"policy.cameras has 'imag', .* Did you mean 'image'"):
        fresh(dataset, "cameras=[imag]")


@pytest.mark.parametrize("key", ["observation.state", "action"])
def test_missing_statistics_are_named_before_training(own_dataset: Path, key: str) -> None:
    edit_json(own_dataset / "meta" / "stats.json", lambda stats: stats.pop(key))
    with pytest.raises(DataError, match=rf"no statistics of '{key}'.*recompute_stats"):
        fresh(own_dataset)


def test_a_single_missing_statistic_is_named(own_dataset: Path) -> None:
    edit_json(own_dataset / "meta" / "stats.json", lambda stats: stats["action"].pop("q99"))
    fresh(own_dataset)
    with pytest.raises(CheckpointError, match=r"'action' lack 'q99', which 'quantile' normalisation needs"):
        fresh(own_dataset, "normalize_action=quantile")


def test_statistics_that_are_no_numbers_are_named(own_dataset: Path) -> None:
    edit_json(
        own_dataset / "meta" / "stats.json", lambda stats: stats["action"].update(max=[float("nan"), 1.0])
    )
    with pytest.raises(DataError, match=r"statistics of 'action' have max=\[nan"):
        fresh(own_dataset)


def test_features_that_do_not_fit_a_checkpoint_are_named(own_dataset: Path, tmp_path: Path) -> None:
    policy = fresh(own_dataset)
    policy.save_pretrained(tmp_path / "saved")
    trained = policy.config
    trained.pretrained_path = tmp_path / "saved"

    def widen(info: dict) -> None:
        info["features"]["observation.environment_state"]["shape"] = [4]

    trained.input_features["observation.environment_state"].shape = (4,)
    edit_json(own_dataset / "meta" / "info.json", widen)
    with pytest.raises(
        DataError, match=r"'observation.environment_state' has the shape \(4,\) now, .*\(3,\)"
    ):
        make_policy(trained, ds_meta=metadata(own_dataset))


def test_observations_that_do_not_fit_are_named(dataset: Path) -> None:
    policy = fresh(dataset).eval()
    batch = batch_of(dataset, policy)
    with pytest.raises(DataError, match=r"needs 'observation.image', and the batch has \['observation.envi"):
        policy.predict_action_chunk({k: v for k, v in batch.items() if k != CAMERA})
    with pytest.raises(
        DataError, match=r"'observation.image' has the shape .*, and the policy needs .*40, 48, 3"
    ):
        policy.predict_action_chunk({**batch, CAMERA: batch[CAMERA][..., :32]})
    with pytest.raises(DataError, match=r"'action' has the shape \(18, 3, 2\)"):
        policy.forward({**batch, "action": batch["action"][:, :3]})


def test_matrices_are_no_states(dataset: Path) -> None:
    made = config()
    made.output_features = config().output_features
    policy = fresh(dataset)
    made.output_features = policy.config.output_features
    made.input_features = dict(policy.config.input_features)
    made.input_features["observation.matrix"] = type(made.input_features[STATE])(
        made.input_features[STATE].type, (3, 3)
    )
    with pytest.raises(DataError, match=r"'observation.matrix' has the shape \(3, 3\).*--policy.state_keys"):
        ModePolicy(made, dataset_stats=metadata(dataset).stats, dataset_meta=metadata(dataset))
