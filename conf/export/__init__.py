"""Hydra configuration of the export."""
