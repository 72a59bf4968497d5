"""What `lerobot_side_by_side` compares: settings of each policy, of comparable size."""

from __future__ import annotations

CHUNK, EXECUTE = 16, 8
#: What ``--policy.`` gets, for networks of three to five million parameters that act.
METHODS: dict[str, list[str]] = {
    "mode_ours": [],
    "mode_lerobot": [
        "type=mode",
        "denoiser.dim=128",
        "denoiser.num_layers=4",
        "denoiser.num_heads=4",
        "state_keys=[observation.state]",
        "state_hidden=[256,256]",
        "state_tokens=128",
        f"chunk_size={CHUNK}",
        "n_obs_steps=2",
        "optimizer_lr=1e-3",
    ],
    "diffusion": [
        "type=diffusion",
        "down_dims=[64,128,256]",
        "noise_scheduler_type=DDIM",
        "num_inference_steps=10",
        f"horizon={CHUNK}",
        "n_obs_steps=2",
        "optimizer_lr=1e-3",
        'normalization_mapping={"STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"}',
    ],
    "act": [
        "type=act",
        "dim_model=160",
        "n_heads=4",
        "dim_feedforward=640",
        f"chunk_size={CHUNK}",
        "optimizer_lr=3e-4",
        "vision_backbone=resnet18",
        'normalization_mapping={"STATE": "MEAN_STD", "ENV": "MEAN_STD", "ACTION": "MEAN_STD"}',
    ],
    "multi_task_dit": [
        "type=multi_task_dit",
        "hidden_dim=128",
        "num_layers=4",
        "num_heads=4",
        "noise_scheduler_type=DDIM",
        "num_inference_steps=10",
        f"horizon={CHUNK}",
        "optimizer_lr=1e-3",
    ],
}
NAMES = {
    "mode_ours": "MoDE, our loop",
    "mode_lerobot": "MoDE, lerobot-train",
    "diffusion": "Diffusion",
    "act": "ACT",
    "multi_task_dit": "Multi-task DiT",
}
