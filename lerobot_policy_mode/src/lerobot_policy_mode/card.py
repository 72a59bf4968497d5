"""The part of a model card that describes a MoDE policy."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard

if TYPE_CHECKING:
    from lerobot_policy_mode.modeling_mode import ModePolicy

#: Instructions that a card lists at most.
LISTED = 50


def with_description(card: ModelCard, policy: ModePolicy) -> ModelCard:
    """Return a card of LeRobot's with what is particular to this policy."""
    template = resources.files("lerobot_policy_mode").joinpath("model_card.md").read_text(encoding="utf-8")
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts(policy).items())
    text = template.format(table=f"| | |\n| --- | --- |\n{rows}", instructions=_instructions(policy))
    return ModelCard(f"{str(card).rstrip()}\n\n---\n\n{text}")


def facts(policy: ModePolicy) -> dict[str, str]:
    """Return name and value of what a reader asks for first."""
    config, model = policy.config, policy.model
    d, s = config.denoiser, config.sampler
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    found = {
        "Parameters": f"{millions:.1f} M",
        "Denoiser": f"{d.num_layers} layers, width {d.dim}, {d.num_heads} heads",
        "Experts": f"{d.experts.active} of {d.experts.num} active" + (", one shared" * d.experts.shared),
        "Observations": f"{config.n_obs_steps}, cameras: {', '.join(config.cameras or []) or 'none'}",
        "Chunk": f"{config.chunk_size} actions, {config.n_action_steps} executed",
        "Sampler": f"{s.name}, {s.steps} steps, {s.schedule} from {s.sigma_max:g} to {s.sigma_min:g}",
        "Normalisation": f"state {config.normalize_state}, action {config.normalize_action}",
        "Language": config.language or "none",
        "Average": f"{int(policy.ema_updates)} updates" if policy.ema is not None else "none",
    }
    rate = model.convention.fps
    return found | ({"Control rate": f"{rate:g} Hz"} if rate else {})


def _instructions(policy: ModePolicy) -> str:
    if policy.instructions is None:
        return "The policy takes no instructions."
    texts = policy.instructions.texts
    more = f"\n- … and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return "It was trained on these instructions:\n\n" + "\n".join(f"- {t}" for t in texts[:LISTED]) + more
