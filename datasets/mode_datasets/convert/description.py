"""What we write into data sets of other formats, so that nothing is lost when they are read back.

Other programs pass it over. Whoever changes such a data set without it is believed: a description that does
not fit the arrays is left unused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mode_datasets.convert.source import KeyMap
from mode_datasets.schema import Provenance
from mode_policy.convention import Convention
from mode_policy.errors import DataError
from mode_policy.types import Feature, Features, Task

#: Name of the attribute, or stem of the file, that holds it.
NAME = "mode_policy"


@dataclass(frozen=True, kw_only=True)
class Description:
    """Features, convention, provenance and tasks of a data set, and which of its arrays hold each feature."""

    features: Features
    keys: KeyMap
    convention: Convention
    provenance: Provenance
    tasks: tuple[Task, ...]

    def dumps(self) -> str:
        """Return it as JSON; `loads` inverts it."""
        return json.dumps(
            {
                "features": {key: feature.to_json() for key, feature in self.features.items()},
                "keys": {key: list(names) for key, names in self.keys.items()},
                "convention": self.convention.to_json(),
                "provenance": self.provenance.to_json(),
                "tasks": [vars(task) for task in self.tasks],
            }
        )

    @classmethod
    def loads(cls, text: Any) -> Description | None:
        """Read what `dumps` wrote, or return None if it is anything else."""
        try:
            data = json.loads(text)
            return cls(
                features={key: Feature.from_json(value) for key, value in data["features"].items()},
                keys={key: tuple(names) for key, names in data["keys"].items()},
                convention=Convention(**data["convention"]),
                provenance=Provenance(**data["provenance"]),
                tasks=tuple(Task(**task) for task in data["tasks"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, DataError):
            return None


def refine(features: Features, described: Description | None) -> Features:
    """Return features with the names, units and angles of a description, where the shapes agree."""
    if described is None:
        return features
    return {
        key: known if (known := described.features.get(key)) and known.shape == feature.shape else feature
        for key, feature in features.items()
    }


def described_task(instruction: str, described: Description | None) -> Task | None:
    """Return the described task of an instruction, if there is exactly one."""
    found = [task for task in (described.tasks if described else ()) if task.instruction == instruction]
    return found[0] if len(found) == 1 else None


def download_record(destination: Path) -> Path:
    """Return the file beside a download in which it notes where its data come from."""
    return destination.absolute().with_name(f".{destination.absolute().name}.download.json")


def folder_provenance(path: Path) -> Mapping[str, str]:
    """Return source and licence that ``mode-data download`` noted for data or their folder; else nothing."""
    for place in (path.absolute(), path.absolute().parent):
        try:
            noted = json.loads(download_record(place).read_text())
            return {"source": str(noted["source"]), "licence": str(noted["licence"])}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {}


def provenance_of(
    path: Path, kind: str, licence: str | None, described: Description | None = None
) -> Provenance:
    """Return where data come from: what they say themselves, what was noted, or that nothing is known.

    Args:
        path: Of the data.
        kind: Of data, for those of which nothing is known.
        licence: What the user says.
        described: What the data say.
    """
    if described is not None:
        known = described.provenance
    else:
        noted = folder_provenance(path)
        source = noted.get("source") or f"{kind} {path.name}"
        known = Provenance(source=source, licence=noted.get("licence") or "unknown")
    return replace(known, licence=licence) if licence else known
