"""``mode-lerobot``: what LeRobot's own commands do not do.

::

    mode-lerobot to-lerobot runs/pusht/…/checkpoints/last policy
        then: lerobot-eval --policy.path=policy …
    mode-lerobot from-lerobot outputs/train/…/pretrained_model checkpoint
        then: mode-evaluate, mode-serve, mode-control, … checkpoint=checkpoint
    mode-lerobot policy-server --port 8080
        LeRobot's asynchronous inference
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mode_policy.apps.cli import console, exit_codes


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mode-lerobot``."""
    parser = argparse.ArgumentParser(
        prog="mode-lerobot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    there = commands.add_parser("to-lerobot", help="a checkpoint of ours as a policy of LeRobot")
    back = commands.add_parser("from-lerobot", help="a policy of LeRobot as a checkpoint of ours")
    for command in (there, back):
        command.add_argument("source", type=Path)
        command.add_argument("destination", type=Path)
    server = commands.add_parser("policy-server", help="LeRobot's asynchronous policy server, with MoDE")
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=8080, help="0 for a free one")
    server.add_argument("--fps", type=int, default=30)
    server.add_argument("--inference-latency", type=float, default=0.0, metavar="S")
    server.add_argument("--obs-queue-timeout", type=float, default=2.0, metavar="S")
    arguments = parser.parse_args(argv)
    with exit_codes():
        _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "policy-server":
        from lerobot_policy_mode.policy_server import serve

        serve(
            arguments.host,
            arguments.port,
            fps=arguments.fps,
            inference_latency=arguments.inference_latency,
            obs_queue_timeout=arguments.obs_queue_timeout,
        )
        return
    from lerobot_policy_mode.convert import from_lerobot, to_lerobot

    convert = to_lerobot if arguments.command == "to-lerobot" else from_lerobot
    convert(arguments.source.expanduser(), arguments.destination.expanduser())
    console.print(f"{'policy' if convert is to_lerobot else 'checkpoint':<10} {arguments.destination}")
