"""Kernels: for each operation a plain PyTorch reference and the fast form that must equal it.

Training, and every CPU, use `expert_mlp`. On a GPU it runs ``mode::grouped_experts``: `grouping` sorts
samples by expert on the device, `grouped_forward` and `grouped_backward` hold the kernels, `grouped` the
operation and its gradient.

Inference on a GPU runs four operations a layer and one a step, each in a file of its own::

    norm_linear   norm, query-key-value projection, noise embedding as a table of biases
    attention     query-key norm, causal attention, output projection, residual
    expert_up     norm, first projection of the chosen experts, SiLU, product, routing weight
    expert_down   second projection of the chosen experts, residual
    step_tail     final norm, output, preconditioning, sampler update, next step's tokens

Their oracles are in `reference_inference`. `quantize` packs weights into 8 bits for them, `tile_table` says
how they are cut into tiles on each GPU, `launch` what they can run on. None of these is imported until it is
used.
"""

from mode_kernels.experts import expert_mlp
from mode_kernels.reference import expert_mlp_reference

__all__ = ["expert_mlp", "expert_mlp_reference"]
