"""Hydra configuration of the control program."""
