"""What a program answers to ``--help``: its configuration as it stands, with every comment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

#: Keys of a configuration's file that are not settings of the program.
_COMPOSITION = ("defaults", "hydra")


def usage(package: str, config_name: str, purpose: str, groups: Mapping[str, Sequence[str]]) -> str:
    """Return the help of a program.

    Args:
        package: that holds its configuration, e.g. ``mode_policy.conf``.
        config_name: of the file ``<config_name>.yaml``, whose first comment shows how the program is called.
        purpose: one sentence.
        groups: name of a group → its choices.
    """
    text = files(package).joinpath(f"{config_name}.yaml").read_text(encoding="utf-8")
    head, body = re.fullmatch(r"((?:#.*\n)*)((?:.*\n?)*)", text).groups()  # type: ignore[union-attr]
    sections = re.split(r"\n(?=\w|# |\n)", body)
    settings = [s for s in sections if s.split(":", 1)[0] not in _COMPOSITION]
    parts = [purpose, re.sub(r"^# ", "", head, flags=re.MULTILINE).rstrip()]
    if groups:
        width = max(map(len, groups))
        rows = [f"  {name.ljust(width)}  {' | '.join(choices)}" for name, choices in sorted(groups.items())]
        parts.append("\n".join(["Groups, chosen as group=choice:", *rows]))
    parts.append("Settings and what they are where nothing else is said:\n\n" + "\n".join(settings).strip())
    parts.append(
        "-m runs once for each of several values, key=1,2,3; --cfg job prints the composed configuration; "
        "--hydra-help\nlists what else Hydra offers."
    )
    return "\n\n".join(parts)
