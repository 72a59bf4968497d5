"""Robots: one protocol, and what implements it."""

from mode_policy.deploy.robots.base import RobotInterface, RobotObservation

__all__ = ["RobotInterface", "RobotObservation"]
