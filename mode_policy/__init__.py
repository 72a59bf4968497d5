"""MoDE: diffusion transformer policies whose experts are routed by the noise level (arXiv 2412.12953)."""

__version__ = "0.1.0"
