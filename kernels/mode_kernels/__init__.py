"""Expert kernels: for each operation a plain PyTorch reference and the fast form that must equal it."""

from mode_kernels.experts import expert_mlp
from mode_kernels.reference import expert_mlp_reference

__all__ = ["expert_mlp", "expert_mlp_reference"]
