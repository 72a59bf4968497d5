"""Diffusion: preconditioning, noise levels, samplers."""
