"""The network: attention, router, experts, block, denoiser."""
