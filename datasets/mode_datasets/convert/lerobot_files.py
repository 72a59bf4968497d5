"""The files of a LeRobotDataset: where they are, whether all are there, and what is said beside the data."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from mode_datasets.convert.description import NAME, Description, provenance_of
from mode_datasets.schema import Provenance
from mode_policy.errors import ConfigError, DataError


def load_metadata(path: Path) -> Any:
    """Read a data set's metadata with LeRobot, after making sure that nothing has to be downloaded.

    Raises:
        ConfigError: if LeRobot is not installed.
        DataError: if something is missing or damaged.
    """
    for name in ("meta/info.json", "meta/tasks.parquet", "meta/episodes"):
        if not (path / name).exists():
            raise DataError(f"{path} lacks {name}; download the data set again")
    if not any((path / "meta" / "episodes").glob("*/*.parquet")):
        raise DataError(f"{path} lacks meta/episodes/*/*.parquet; download the data set again")
    try:
        from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    except ImportError as error:
        raise ConfigError("LeRobotDatasets need: pip install 'mode-policy[lerobot]'") from error
    try:
        return LeRobotDatasetMetadata(repo_id=f"local/{path.name}", root=path)
    except Exception as error:  # its parsers raise whatever they like
        raise DataError(
            f"the metadata of {path} are damaged ({error}); download the data set again"
        ) from error


def inside(root: Path, relative: Path) -> Path:
    """Return a file of a data set.

    Raises:
        DataError: if the path leaves the data set's folder, or there is no such file.
    """
    path = root / relative
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root)):
        raise DataError(f"{relative} would leave {root}; the data set is not trusted")
    if not path.is_file():
        raise DataError(f"{root} lacks {relative}; download the data set again")
    return path


def description(path: Path) -> Description | None:
    """Return what this package wrote into the data set, or None."""
    try:
        return Description.loads((path / "meta" / f"{NAME}.json").read_text())
    except OSError:
        return None


def check_files(path: Path, meta: Any, names: set[str]) -> None:
    """Check that all files are there, before hours of conversion stop at the missing one."""
    videos = [name for name in names if meta.features[name]["dtype"] == "video"]
    files = {meta.get_data_file_path(i) for i in range(meta.total_episodes)}
    files |= {meta.get_video_file_path(i, name) for i in range(meta.total_episodes) for name in videos}
    for file in sorted(files):
        inside(path, file)


def provenance(path: Path, licence: str | None, described: Description | None) -> Provenance:
    """Return where the data come from; the card of a published data set names its licence."""
    known = provenance_of(path, "LeRobotDataset", licence, described)
    if known.licence != "unknown":
        return known
    try:
        found = re.search(r"^license:\s*(\S+)", (path / "README.md").read_text(), re.MULTILINE)
    except OSError:
        return known
    return replace(known, licence=found.group(1)) if found else known
