"""Stores of published demonstrations, fetched and converted when they are first needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mode_datasets.convert import Progress, SinkOptions, SourceOptions, convert, open_sink, open_source
from mode_datasets.download import download
from mode_datasets.published import CATALOGUE
from mode_envs import EnvTask
from mode_envs.registration import entry
from mode_policy.apps.cli import console
from mode_policy.apps.config import DatasetConfig
from mode_policy.apps.progress import bar
from mode_policy.errors import ConfigError, DataError


def fetch_store(path: Path, config: DatasetConfig, tasks: Sequence[EnvTask]) -> None:
    """Fetch published demonstrations, and make a store of them; after an interruption, call it again.

    Raises:
        DataError: if they cannot be fetched, with all ways to get demonstrations; or if they are damaged.
    """
    assert config.published is not None
    item = CATALOGUE[config.published]
    raw = Path(config.folder).expanduser() / item.name
    console.print(f"fetching   {item.source}\n           to {raw} (licence {item.licence})")
    try:
        with bar("fetching") as shown:
            row = shown.add_task("fetching", total=None, note="")

            def fetched(what: str, done: int, total: int) -> None:
                shown.update(row, completed=done, total=total or None, note=f"{what}, {done / 2**20:.0f} MiB")

            download(item, raw, progress=fetched)
    except (ConfigError, DataError) as error:
        raise DataError(_ways(path, raw, config.published, tasks, str(error))) from error
    source, detected = open_source(raw, None, SourceOptions())
    console.print(f"converting {raw} ({detected.format}) to {path}")
    options = SinkOptions(
        features=source.features, convention=source.convention, provenance=source.provenance
    )
    with bar("converting", "episodes") as shown:
        row = shown.add_task("converting", total=source.num_episodes, note="")

        def converted(progress: Progress) -> None:
            shown.update(row, completed=progress.done, note=progress.note or "")

        convert(source, open_sink(path, "store", options), path, progress=converted)


def _ways(path: Path, raw: Path, name: str, tasks: Sequence[EnvTask], why: str) -> str:
    able = [t.task.name for t in tasks if entry(t.env_id).has_expert]
    if len(able) == len(tasks):
        scripted = "dataset.source=scripted"
    elif able:
        scripted = f"dataset.source=scripted task.tasks=[{able[0]}{', …' if len(able) > 1 else ''}]"
    else:
        scripted = ""
    lines = [
        f"no demonstrations at {path}, and the published ones cannot be fetched: {why}",
        "  to use the published ones: on a machine that reaches the hub, run "
        f"`mode-data download {name} --folder {raw.parent}` and `mode-data convert {raw} {path}`, and bring "
        f"{path} here; or give dataset.path=… if you have them as a store",
    ]
    if scripted:
        lines.append(
            f"  to let scripted experts demonstrate here ({len(able)} of the {len(tasks)} tasks have one): "
            f"add {scripted}; where nothing at all can be downloaded, also "
            "policy.language=minilm-l6-v2 policy.vision.weights=none"
        )
    return "\n".join(lines)
