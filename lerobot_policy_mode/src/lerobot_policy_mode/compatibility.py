"""Which LeRobot this plug-in is written for."""

from __future__ import annotations

import re
from importlib import metadata

#: The first version that fits, and the first that is not known to.
FIRST, BEFORE = (0, 6, 1), (0, 7)


def check_lerobot() -> None:
    """Make sure that LeRobot is there in a version that this plug-in knows.

    Raises:
        ImportError: saying what there is, what is needed and how to get it. LeRobot logs it and goes on
            without the plug-in; its own message is then only that the choice ``mode`` is invalid.
    """
    needed = f"lerobot>={_text(FIRST)},<{_text(BEFORE)}"
    way_out = f"run: pip install '{needed}'"
    try:
        found = metadata.version("lerobot")
    except metadata.PackageNotFoundError:
        raise ImportError(f"lerobot_policy_mode needs {needed}, which is not installed; {way_out}") from None
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:3])
    if not FIRST <= numbers < BEFORE:
        raise ImportError(
            f"lerobot_policy_mode needs {needed}, but lerobot {found} is installed; {way_out}, or take the "
            "version of lerobot_policy_mode that was made for yours"
        )
    try:
        import lerobot.policies  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"lerobot_policy_mode cannot use lerobot {found}: {error}. Repair that installation; {way_out}"
        ) from error


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
