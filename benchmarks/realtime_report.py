"""Turn the newest records of `realtime_delay` and `realtime_jitter` into ``docs/realtime.md`` and its plots.

uv run benchmarks/realtime_report.py
uv run benchmarks/realtime_report.py --results FOLDER --docs FOLDER
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TITLES = {"pusht": "Push-T", "metaworld": "Meta-World MT10"}
COLUMNS = {
    "strategy": "strategy",
    "delay": "delay, ms",
    "ticks": "in ticks",
    "success": "success",
    "coverage": "coverage",
    "seam": "jump at seams, ‰",
    "inside": "inside chunks, ‰",
    "seam / inside": "ratio",
    "jerk": "jerk, ‰",
    "held": "held",
    "length": "ticks an episode",
}
SUMMARY = (
    *("", "half a chunk", "episodes", "success without delay", "with it"),
    *("success kept", "mean coverage kept", "jumps: seams / inside"),
)
AIM = """## A delay of half a chunk

The aim of real-time chunking (rtc): at least 95 % of the success without injected delay, and jumps at seams
no larger than inside chunks.
"""
REMARK = """In Push-T an episode succeeds above 95 % coverage, and a policy that ends just below it loses much
of its success by little: there the mean coverage says more, and the success of so few episodes is uncertain.
"""
JITTER = {
    "missed %": "missed",
    "jitter ms 99 %": "jitter, 99 %",
    "late ms 50 %": "late, median",
    "late ms 99 %": "99 %",
    "late ms 99.9 %": "99.9 %",
    "late ms max": "most",
    "chunk ms 50 %": "a chunk, median",
    "collections": "garbage collections",
    "major page faults": "page faults",
    "memory growth MB": "memory growth, MB",
}
HEAD = """# Real-time control, measured

Made from the records in `benchmarks/results/` by `benchmarks/realtime_report.py`.

**Injected delays.** An answer comes as long after its request as the table says, or as long as the policy
itself takes where that is longer. "half" is the delay with which a chunk is half used up when it arrives.
Jumps are the mean change of command from one tick to the next: at seams, where two chunks meet or the robot
was held between, and inside chunks; jerk is the mean third difference of the commanded position. All three
are norms in per mille of the demonstrations' range. "Held" is the share of ticks without an action of the
policy, after the first chunk. Success is given with its 95 % interval; coverage, where an environment
measures one, is the mean over the episodes of their best, and finer than Push-T's success, which asks for
95 % of it. Two cells whose intervals overlap may well be equal.

With the virtual clock every delay is exact and the same command gives the same numbers; a check beside it,
where there is one, ran as `mode-control` runs a robot: simulator, loop and server in processes of their own,
on the system's clock.
"""


def newest(folder: Path, pattern: str) -> dict[str, dict[str, Any]]:
    """Return the newest record of each benchmark whose file matches, by name."""
    records = [json.loads(path.read_text()) for path in folder.glob(pattern)]
    return {record["benchmark"]: record for record in sorted(records, key=lambda r: r["date"])}


def cells(row: dict[str, Any]) -> dict[str, str]:
    """Return what a row of a record looks like in the table."""

    def plain(value: Any) -> str:
        return "–" if value is None else f"{value:g}"

    ms = f"{row['delay ms']:g}"
    return {
        "strategy": row["strategy"],
        "delay": f"half ({ms})" if row["delay"] == "half" else ms,
        "ticks": plain(row["delay ticks"]),
        "success": f"{row['success']:.2f} [{row['low']:.2f}, {row['high']:.2f}]",
        "coverage": plain(row.get("coverage")),
        "seam": plain(row["seam"]),
        "inside": plain(row["inside"]),
        "seam / inside": plain(row["seam / inside"]),
        "jerk": plain(row["jerk"]),
        "held": f"{100 * row['held']:.0f} %",
        "length": plain(row["ticks"]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    covered = any(row.get("coverage") is not None for row in rows)
    names = [name for name in COLUMNS if name != "coverage" or covered]
    lines = ["| " + " | ".join(COLUMNS[name] for name in names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cells(row)[name] for name in names) + " |" for row in rows]
    return "\n".join(lines)


def summary(records: Mapping[str, dict[str, Any]]) -> str:
    """Say how strategies bear a delay of half a chunk, of each robot and rate by the most episodes."""
    best: dict[str, dict[str, Any]] = {}
    for name, record in sorted(records.items()):
        base = name.partition("_virtual")[0]
        if record["rows"][0]["episodes"] > best.get(base, {"rows": [{"episodes": 0}]})["rows"][0]["episodes"]:
            best[base] = record
    lines = [f"| {' | '.join(SUMMARY)} |", "|---" * len(SUMMARY) + "|"]
    for record in best.values():
        for strategy in ("rtc", "asynchronous"):
            found = {row["delay"]: row for row in record["rows"] if row["strategy"] == strategy}
            if {"0", "half"} <= set(found):
                lines.append(f"| {' | '.join(kept(record, strategy, found['0'], found['half']))} |")
    return "\n".join([AIM, *lines, "", REMARK])


def kept(record: dict[str, Any], strategy: str, free: dict[str, Any], half: dict[str, Any]) -> list[str]:
    """Return a row of the summary."""

    def share(name: str) -> str:
        return f"**{100 * half[name] / free[name]:.0f} %**" if free[name] else "–"

    coverage = "–"
    if half.get("coverage") and free.get("coverage"):
        coverage = f"{share('coverage')}: {half['coverage']:g} of {free['coverage']:g}"
    return [
        f"{titled(record)}, {strategy}",
        f"{half['delay ms']:g} ms",
        str(half["episodes"]),
        cells(free)["success"],
        cells(half)["success"],
        share("success"),
        coverage,
        f"{half['seam / inside']:g}",
    ]


def titled(record: dict[str, Any]) -> str:
    """Return what was driven, and how fast."""
    robot = record["config"]["robot"]
    return f"{TITLES.get(robot, robot)} at {record['config']['rate']:g} Hz"


def lost(rows: list[dict[str, Any]]) -> str:
    """Say which tasks real-time chunking lost with half a chunk's delay, where there are several."""
    (half,) = [row for row in rows if (row["strategy"], row["delay"]) == ("rtc", "half")] or [{}]
    if half.get("coverage") is not None or not half.get("lost"):
        return ""
    tasks = ", ".join(f"{n} of {task}" for task, n in sorted(half["lost"].items()))
    return f"Real-time chunking with a delay of half a chunk lost {tasks}.\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        mine = sorted((r for r in rows if r["strategy"] == strategy), key=lambda r: r["delay ms"])
        x = [r["delay ms"] for r in mine]
        error = [[r["success"] - r["low"] for r in mine], [r["high"] - r["success"] for r in mine]]
        axes[0].errorbar(x, [r["success"] for r in mine], error, marker="o", capsize=2, label=strategy)
        for axis, name in ((axes[1], "seam / inside"), (axes[2], "jerk")):
            known = [(r["delay ms"], r[name]) for r in mine if r[name] is not None]
            axis.plot([k[0] for k in known], [k[1] for k in known], marker="o", label=strategy)
    axes[0].set(ylabel="success, 95 % interval", ylim=(0, 1.02))
    axes[1].set(ylabel="jumps: seams / inside chunks", ylim=(0, None))
    axes[1].axhline(1, color="gray", linewidth=0.8)
    axes[2].set(ylabel="jerk, ‰ of the range per tick³", ylim=(0, None))
    for axis in axes:
        axis.set_xlabel("injected delay, ms")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def described(record: dict[str, Any]) -> str:
    config = record["config"]
    about = [
        f"{config['episodes']} episodes of each of {len(config['tasks'])} tasks in a cell"
        if len(config["tasks"]) > 1
        else f"{config['episodes']} episodes in a cell",
        f"chunks of {config['chunk']}, of which {config['execute']} are executed, with rtc at most half",
        *config["override"],
        f"{record['device']['cpu']}, {record['date'][:10]}, commit {record['commit']}",
    ]
    return "; ".join(about) + ".\n"


def delays(folder: Path, docs: Path) -> str:
    records = newest(folder, "realtime_delay_*.json")
    parts = [summary({n: r for n, r in records.items() if "_virtual" in n})] if records else []
    for name in sorted(n for n in records if n.endswith("_virtual")):
        record, check = records[name], records.get(name.replace("_virtual", "_real"))
        rows = record["rows"]
        picture = docs / "media" / f"{name.removesuffix('_virtual')}.png"
        plot(rows, picture)
        parts += [f"## {titled(record)}\n", described(record)]
        parts += [f"![Success, jumps and jerk]({picture.relative_to(docs)})\n", table(rows) + "\n"]
        for part in (r for other, r in sorted(records.items()) if other.startswith(f"{name}_")):
            parts += [described(part), lost(part["rows"]), table(part["rows"]) + "\n"]
        if check is not None:
            parts += ["In real time:\n", described(check), table(check["rows"]) + "\n"]
    return "\n".join(part for part in parts if part)


def jitter(folder: Path) -> str:
    records = newest(folder, "realtime_jitter_*.json").values()
    if not records:
        return ""
    lines = [f"| beside the loop | {' | '.join(JITTER.values())} |", "|---" * (1 + len(JITTER)) + "|"]
    for record in records:
        row = record["rows"][0]
        lines.append(f"| {beside(record['config'])} | {' | '.join(f'{row[key]:g}' for key in JITTER)} |")
    first = next(iter(records))
    config, device = first["config"], first["device"]
    text = f"""## The loop's jitter

{config["seconds"]:g} seconds of a loop at {config["rate"]:g} Hz, with inference in a process of its own, one
chunk after the other ({device["cpu"]}, {device["cores"]} cores, {first["date"][:10]}). Times are in ms. A
tick is missed (in per cent) if its command is not sent within its period; jitter is by how much the time
between two ticks differs from the period; a tick is late by the time between its deadline and its beginning.
"""
    return text + "\n" + "\n".join(lines) + "\n"


def beside(config: dict[str, Any]) -> str:
    """Return in words what else the machine did."""
    parts = [f"inference at niceness {config['niceness']}"]
    if config["load"]:
        parts.append(f"{config['load']} busy processes")
    if config["priority"]:
        parts.append(f"the loop at real-time priority {config['priority']}")
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--record", action="store_true", help="as the other benchmarks; without effect")
    arguments = parser.parse_args()
    (arguments.docs / "media").mkdir(parents=True, exist_ok=True)
    parts = [HEAD, delays(arguments.results, arguments.docs), jitter(arguments.results)]
    path = arguments.docs / "realtime.md"
    if not any(parts[1:]):
        print(f"no records of realtime_delay or realtime_jitter in {arguments.results}")
        return
    path.write_text("\n".join(part for part in parts if part).rstrip() + "\n")
    print(path)


if __name__ == "__main__":
    main()
