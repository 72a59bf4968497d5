"""What a chunk costs at least: bytes of weights that have to be read, and multiply-adds, both counted."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode

from mode_policy.inference.engine import EagerEngine
from mode_policy.inference.levels import all_calls
from mode_policy.inference.plan import InferencePlan
from mode_policy.inference.weights import ExpertWeights, Matrix
from mode_policy.types import Observation


def weight_bytes(plan: InferencePlan) -> int:
    """Return the bytes of large weights that a chunk reads, if each network call reads what it uses once.

    These are the attention's projections and the experts that the call's noise level runs, in the plan's
    precision; the whole network does not fit into a cache, so each call reads them again.
    """
    return sum(_of_level(plan, plan.level(sigma)) for sigma in all_calls(plan.sampler, plan.sigmas))


def multiply_adds(plan: InferencePlan, observation: Observation) -> int:
    """Return the multiply-adds of a chunk's products and convolutions, image encoders included.

    Counted while the engine ``eager`` runs, by `torch.utils.flop_counter`.
    """
    with FlopCounterMode(display=False) as counter:
        EagerEngine(plan).act(observation)
    return int(counter.get_total_flops()) // 2


def _of_level(plan: InferencePlan, level: int) -> int:
    total = 0
    rows = plan.row(level)
    for i, tables in enumerate(plan.layers):
        weights = plan.weights(i)
        total += _bytes(Matrix(tables.qkv_weight_ED, tables.qkv_scale_E)) + _bytes(weights.projection_DD)
        chosen = len(tables.expert_VK[rows].unique())
        total += chosen * _bytes_of_expert(weights.experts)
        total += 0 if weights.shared is None else _bytes_of_expert(weights.shared)
    return total


def _bytes_of_expert(bank: ExpertWeights) -> int:
    return (_bytes(bank.up_NED) + _bytes(bank.down_NDH)) // len(bank.bias_NE)


def _bytes(matrix: Matrix) -> int:
    return sum(t.numel() * t.element_size() for t in matrix if t is not None)
