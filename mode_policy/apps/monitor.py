"""``mode-monitor``: a web page that shows a running control loop and can stop its robot.

::

    mode-monitor                     the newest loop on this machine, at http://127.0.0.1:8600
    mode-monitor --port 9000
    mode-monitor --stop              no page: stop every robot of this machine, now
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mode_policy.apps.cli import console, exit_codes
from mode_policy.deploy import runtime
from mode_policy.deploy.monitor.server import MonitorServer
from mode_policy.deploy.monitor.state import Watched
from mode_policy.deploy.telemetry import Telemetry
from mode_policy.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mode-monitor``."""
    parser = argparse.ArgumentParser(
        prog="mode-monitor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=8600, help="0 for any free one")
    parser.add_argument("--telemetry", type=Path, help="of one loop; the newest by default")
    parser.add_argument("--stop", action="store_true", help="stop the robots and end")
    arguments = parser.parse_args(argv)
    with exit_codes():
        if arguments.stop:
            stop([arguments.telemetry] if arguments.telemetry else runtime.running())
            return
        if arguments.telemetry:
            Telemetry.attach(arguments.telemetry)  # else the page would wait for it in vain
        server = MonitorServer(Watched(arguments.telemetry), arguments.port)
        console.print(f"monitor    {server.address}; Ctrl-C ends it, and no robot with it")
        server.run()


def stop(loops: Sequence[Path]) -> None:
    """Ask loops to stop their robots.

    Raises:
        ConfigError: if there is none, or one of them cannot be asked; the others are all the same.
    """
    failed = None if loops else ConfigError("no control loop runs here, so there is nothing to stop")
    for path in loops:
        try:
            telemetry = Telemetry.attach(path)
        except ConfigError as error:
            failed = error
            continue
        telemetry.request_stop()
        console.print(f"stopping   {telemetry.header['title'] or path}, at its next tick")
    if failed is not None:
        raise failed


if __name__ == "__main__":
    main()
