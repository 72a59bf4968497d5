"""What `lerobot_side_by_side` measures in processes of their own: data, evaluation, latency.

Every policy is loaded, fed and evaluated by LeRobot's own classes, so that only the policies differ.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

#: Dimensions of the state that belong to the robot; the rest is the scene.
ROBOT_DIMS = {"pusht": 2}
METAWORLD_ROBOT_DIMS = 4


def keypoints(states: np.ndarray) -> np.ndarray:
    """Return the block's corners, ``(N, 16)`` px, from states ``(N, 5)``: an angle would jump at 2π."""
    from gym_pusht.envs.pusht import PushTEnv

    simulator = PushTEnv(obs_type="state")
    simulator.reset(seed=0)
    corners = np.array([v for shape in simulator._block_shapes for v in shape.get_vertices()])
    cos, sin = np.cos(states[:, 4]), np.sin(states[:, 4])
    turned = np.einsum("ijn,kj->nki", np.array([[cos, -sin], [sin, cos]]), corners)
    return (turned + states[:, None, 2:4]).reshape(len(states), -1)


def observed(task: str, states: np.ndarray) -> np.ndarray:
    """Return what policies see of states ``(N, D)``: vectors without jumps."""
    if task == "pusht":
        states = np.concatenate([states[:, :2], keypoints(states)], 1)
    return states.astype(np.float32)


class LeRobotView(gymnasium.Wrapper):
    """A task of `mode_envs` as LeRobot's evaluation expects an environment."""

    def __init__(self, task: str) -> None:
        from mode_envs import register
        from mode_envs.registration import entry

        register()
        self.task_name = task
        super().__init__(gymnasium.make(entry(task).env_id))
        self.task_description = entry(task).instruction
        width = self._view(self.env.reset(seed=0)[0])["agent_pos"].shape[0]
        scene = width - ROBOT_DIMS.get(task, METAWORLD_ROBOT_DIMS)
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            agent_pos=box(-np.inf, np.inf, (width,), np.float32),
            environment_state=box(-np.inf, np.inf, (scene,), np.float32),
        )

    def _view(self, observation: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        state = observed(self.task_name, observation["observation.state"][None])[0]
        return {
            "agent_pos": state,
            "environment_state": state[ROBOT_DIMS.get(self.task_name, METAWORLD_ROBOT_DIMS) :],
        }

    def reset(self, **options: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        seen, info = self.env.reset(seed=options.get("seed"))
        return self._view(seen), {"is_success": bool(info["success"])}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        low, high = self.env.action_space.low, self.env.action_space.high
        seen, reward, done, cut, info = self.env.step(np.clip(action, low, high))
        return self._view(seen), reward, done, cut, {"is_success": bool(info["success"])}


def episodes_of(task: str, source: str) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Yield states, actions and instruction of each demonstration.

    Args:
        task: of `mode_envs`, or a suite.
        source: Push-T's published zarr store; for the others one of our stores, of which only the task's
            episodes are taken.
    """
    from mode_datasets import open_store
    from mode_envs.registration import entry
    from mode_envs.suites import SUITES, suite

    if task == "pusht":
        import zarr

        group = zarr.open_group(source, mode="r")
        states, actions = group["data/state"][:], group["data/action"][:]
        begin = 0
        for end in group["meta/episode_ends"][:]:
            yield states[begin:end], actions[begin:end], entry(task).instruction
            begin = int(end)
        return
    store = open_store(source)
    wanted = {one.task.name for one in suite(task)} if task in SUITES else {task}
    for number in range(store.num_episodes):
        episode = store.episode(number)
        if episode.task.name not in wanted:
            continue
        yield episode.arrays["observation.state"], episode.arrays["action"], episode.task.instruction


def write_datasets(task: str, source: str, folder: str, held_out: float, limit: int | None) -> dict[str, int]:
    """Write ``train`` and ``held_out`` as LeRobotDatasets; return their numbers of episodes and frames."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from mode_envs.features import convention
    from mode_envs.suites import SUITES, suite

    robot = ROBOT_DIMS.get(task, METAWORLD_ROBOT_DIMS)
    episodes = list(episodes_of(task, source))[:limit]
    fps = int(convention(suite(task)[0].env_id if task in SUITES else task).fps)
    last = set(
        np.random.default_rng(0)
        .permutation(len(episodes))[: max(1, round(held_out * len(episodes)))]
        .tolist()
    )
    counts: dict[str, int] = {}
    for name in ("train", "held_out"):
        chosen = [e for i, e in enumerate(episodes) if (i in last) == (name == "held_out")]
        width, dim = observed(task, chosen[0][0]).shape[1], chosen[0][1].shape[1]
        features = {
            key: {"dtype": "float32", "shape": (n,), "names": [f"{key.split('.')[-1]}_{i}" for i in range(n)]}
            for key, n in (
                ("observation.state", width),
                ("observation.environment_state", width - robot),
                ("action", dim),
            )
        }
        dataset = LeRobotDataset.create(
            f"local/{name}", fps, features, root=Path(folder, name), use_videos=False
        )
        for raw, actions, instruction in chosen:
            states = observed(task, raw)
            for state, action in zip(states, np.asarray(actions, np.float32), strict=True):
                frame = {"observation.state": state, "observation.environment_state": state[robot:]}
                dataset.add_frame({**frame, "action": action, "task": instruction})
            dataset.save_episode()
        dataset.finalize()
        counts |= {f"{name}_episodes": dataset.num_episodes, f"{name}_frames": dataset.num_frames}
    return counts


def write_clip(place: str) -> None:
    """Write a CLIP text encoder with few, random weights, for machines that cannot reach the hub."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = Path(place)
    folder.mkdir(parents=True)
    letters = [*"abcdefghijklmnopqrstuvwxyz.,-'"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=len(words) - 1,
        bos_token_id=len(words) - 2,
        pad_token_id=len(words) - 1,
    )
    CLIPTextModel(config).save_pretrained(folder)


def load(folder: str) -> tuple[Any, Any, Any]:
    """Load a policy and its processors as LeRobot does it."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import get_policy_class, make_pre_post_processors
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(folder)
    config.device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = get_policy_class(config.type).from_pretrained(folder, config=config).eval()
    overrides = {"device_processor": {"device": config.device}}
    pre, post = make_pre_post_processors(config, pretrained_path=folder, preprocessor_overrides=overrides)
    return policy, pre, post


def evaluate(folder: str, tasks: Sequence[str], episodes: int, lanes: int, seed: int) -> dict[str, Any]:
    """Roll a policy out; return success and best reward of each episode."""
    from gymnasium.vector import AutoresetMode, SyncVectorEnv
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.scripts.lerobot_eval import eval_policy

    policy, pre, post = load(folder)
    same: Any = PolicyProcessorPipeline(steps=[])
    found: dict[str, Any] = {"success": [], "best_reward": []}
    for task in tasks:
        lane = [lambda task=task: LeRobotView(task)] * min(lanes, episodes)
        env = SyncVectorEnv(lane, autoreset_mode=AutoresetMode.SAME_STEP)
        try:
            torch.manual_seed(seed)
            with torch.no_grad():
                info = eval_policy(env, policy, same, same, pre, post, episodes, start_seed=seed)
        finally:
            env.close()
        found["success"] += [bool(e["success"]) for e in info["per_episode"]]
        found["best_reward"] += [float(e["max_reward"]) for e in info["per_episode"]]
    return found


def figures(folder: str, dataset: str, execute: int, windows: int) -> dict[str, float]:
    """Return what is measured without rollouts: size, error on held-out demonstrations."""
    loaded = load(folder)
    policy = loaded[0]
    acting = policy.acting if policy.name == "mode" else policy
    return {
        "parameters": sum(p.numel() for p in acting.parameters()),
        "error": action_error(loaded, dataset, execute, windows),
    }


def action_error(loaded: tuple[Any, Any, Any], dataset: str, execute: int, windows: int) -> float:
    """Mean absolute error of the actions that would be executed, on held-out demonstrations, raw units."""
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    policy, pre, post = loaded
    meta = LeRobotDatasetMetadata("local/held_out", root=dataset)
    steps = policy.config.observation_delta_indices
    deltas = {k: [i / meta.fps for i in steps] for k in policy.config.input_features} if steps else {}
    deltas["action"] = [i / meta.fps for i in range(execute)]
    data = LeRobotDataset("local/held_out", root=dataset, delta_timestamps=deltas)
    rows = np.random.default_rng(0).permutation(len(data))[:windows]
    batch = torch.utils.data.default_collate([data[int(i)] for i in rows])
    action, keep = batch.pop("action"), ~batch["action_is_pad"]
    torch.manual_seed(0)
    batch = pre(batch)
    with torch.no_grad():
        if policy.name == "multi_task_dit":  # its public function reads queues that only acting fills
            chunk = policy._generate_actions(batch)
        else:
            chunk = policy.predict_action_chunk(batch)
    error = (post(chunk)[:, :execute] - action).abs().mean(-1)
    return float(error[keep].mean())


def latencies(folders: Sequence[str], task: str, rounds: int) -> list[dict[str, float]]:
    """Seconds from an observation to the first action of a new chunk, batch 1, processors included.

    Policies take turns, so that what else the machine does slows all of them alike.
    """
    from lerobot.envs import preprocess_observation

    env = LeRobotView(task)
    seen = preprocess_observation({k: v[None] for k, v in env.reset(seed=0)[0].items()})
    env.close()
    policies = [load(folder) for folder in folders]
    seconds: list[list[float]] = [[] for _ in folders]
    for _ in range(rounds + 2):  # the first ones are slow
        for (policy, pre, post), times in zip(policies, seconds, strict=True):
            policy.reset()
            start = time.perf_counter()
            with torch.inference_mode():
                post(policy.select_action(pre({**seen, "task": [env.task_description]})))
            times.append(time.perf_counter() - start)
    ordered = [sorted(times[2:]) for times in seconds]
    return [
        {"p50_s": statistics.median(times), "p90_s": times[int(0.9 * (len(times) - 1))]} for times in ordered
    ]
