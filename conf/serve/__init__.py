"""Hydra configuration of the policy server."""
