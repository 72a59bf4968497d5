"""Inference: what can be known before the first observation, and engines that run it."""
