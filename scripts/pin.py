"""Pin every package that the project resolves to: ``uv run scripts/pin.py [--check]``.

A lock file names the package index of whoever made it, so ``uv.lock`` stays out of the repository. The
exact versions live in pyproject.toml instead, as constraints that uv applies to every resolution; no address
is kept. Without arguments, all packages are brought to their newest allowed versions and these are pinned.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = ROOT / "pyproject.toml"
LOCK = ROOT / "uv.lock"

BEGIN = "# pins begin; scripts/pin.py writes them"
END = "# pins end"
BLOCK = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)}\n)", re.DOTALL)


def locked(lock: str) -> list[str]:
    """Return a requirement ``name==version`` for each package of a lock file that comes from an index.

    The project and its workspace members come from folders and are left out. Where a package resolves to
    several versions, each carries the environment marker under which it is chosen.
    """
    packages = [p for p in tomllib.loads(lock)["package"] if "registry" in p["source"]]
    return sorted(
        " ; ".join([f"{p['name']}=={p['version']}", *_marker(p.get("resolution-markers", []))])
        for p in packages
    )


def _marker(alternatives: Sequence[str]) -> list[str]:
    if len(alternatives) < 2:
        return list(alternatives)
    return [" or ".join(f"({marker})" for marker in alternatives)]


def pinned(pyproject: str) -> list[str]:
    """Return the requirements that a pyproject.toml pins."""
    pins: list[str] = tomllib.loads(pyproject)["tool"]["uv"].get("constraint-dependencies", [])
    return pins


def with_pins(pyproject: str, pins: Sequence[str]) -> str:
    """Return the text of a pyproject.toml with other pins and nothing else changed.

    Raises:
        SystemExit: if the lines that enclose the pins are missing.
    """
    # JSON's strings are TOML's; a function keeps `re` from reading backslashes in them.
    lines = ["constraint-dependencies = [", *(f"    {json.dumps(pin)}," for pin in pins), "]"]
    text, count = BLOCK.subn(lambda _: "".join(f"{line}\n" for line in lines), pyproject)
    if count != 1:
        raise SystemExit(f"pyproject.toml needs the lines {BEGIN!r} and {END!r} once, below [tool.uv]")
    return text


def check() -> int:
    """Return 1, naming them, if packages are locked in versions that are not pinned."""
    if not LOCK.exists():
        raise SystemExit("there is no uv.lock to compare with; run `uv lock`")
    missing = sorted(set(locked(LOCK.read_text())) - set(pinned(PYPROJECT.read_text())))
    for pin in missing:
        print(f"not pinned: {pin}", file=sys.stderr)
    if missing:
        print("run: uv run scripts/pin.py", file=sys.stderr)
    return int(bool(missing))


def update() -> int:
    """Resolve everything anew, pin the result, and lock once more under the pins."""
    before = PYPROJECT.read_text()
    try:
        PYPROJECT.write_text(with_pins(before, []))
        _lock("--upgrade")
        pins = locked(LOCK.read_text())
        PYPROJECT.write_text(with_pins(before, pins))
        _lock()
    except BaseException:
        PYPROJECT.write_text(before)
        raise
    old, new = set(pinned(before)), set(pins)
    for sign, changed in (("-", old - new), ("+", new - old)):
        for pin in sorted(changed):
            print(sign, pin)
    print(f"{len(pins)} packages pinned")
    return 0


def _lock(*arguments: str) -> None:
    if subprocess.run(["uv", "lock", "--project", str(ROOT), *arguments]).returncode:
        raise SystemExit("uv could not lock; pyproject.toml is left as it was")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 if the pins do not cover uv.lock")
    raise SystemExit(check() if parser.parse_args().check else update())
