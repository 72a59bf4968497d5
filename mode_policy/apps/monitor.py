"""``mode-monitor``: a web page that shows a running control loop and can stop its robot.

::

    mode-monitor                     the newest loop on this machine, at http://127.0.0.1:8600
    mode-monitor --port 9000
    mode-monitor --stop              no page: stop the robot, now
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mode_policy.apps.cli import console, exit_codes
from mode_policy.deploy.monitor.server import MonitorServer
from mode_policy.deploy.monitor.state import Watched
from mode_policy.deploy.telemetry import Telemetry


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mode-monitor``."""
    parser = argparse.ArgumentParser(
        prog="mode-monitor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8600, help="0 for any free one")
    parser.add_argument("--telemetry", type=Path, help="of one loop; the newest by default")
    parser.add_argument("--stop", action="store_true", help="stop the robot and end")
    arguments = parser.parse_args(argv)
    with exit_codes():
        if arguments.stop:
            Telemetry.attach(arguments.telemetry).request_stop()
            console.print("stopping   the loop ends at its next tick, with the robot in its safe state")
            return
        server = MonitorServer(Watched(arguments.telemetry), arguments.port)
        console.print(f"monitor    {server.address}; Ctrl-C ends it, and no robot with it")
        server.run()


if __name__ == "__main__":
    main()
