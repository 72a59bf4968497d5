"""``mode-import``: make one of our checkpoints of the weights that MoDE's authors publish.

::

    mode-import mbreuss/MoDE_Pretrained                    from the hub
    mode-import last.ckpt --task libero_10                 a Lightning checkpoint, with a task's instructions
    mode-import FOLDER checkpoints/calvin --preset calvin --set sampler.steps=5

SOURCE is a Lightning ``.ckpt``, a ``model_cleaned.safetensors``, the folder that holds it, or a repository of
the hub. The architecture is read off the tensors. What they do not tell is assumed and printed: that actions
are in [−1, 1], and what the cameras showed, which the presets describe and the options below change.
Instructions are embedded by the CLIP inside the checkpoint, where there is one, else by the hub's.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mode_policy.apps.cli import compose, console, exit_codes, to_plain
from mode_policy.apps.config import TaskConfig
from mode_policy.apps.dataset import env_tasks
from mode_policy.checkpoint import save_checkpoint
from mode_policy.config import build
from mode_policy.encoders.language import embed_instructions
from mode_policy.errors import CheckpointError, ConfigError
from mode_policy.files import sha256
from mode_policy.policy import MoDEPolicy
from mode_policy.published_config import PRESETS, Images, preset_of
from mode_policy.published_files import PublishedFile, read_published
from mode_policy.published_language import embed_with, text_tensors
from mode_policy.published_policy import ImportedPolicy, import_policy
from mode_policy.types import InstructionTable

LANGUAGE = "clip-vit-b32"


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``mode-import``."""
    arguments = _parser().parse_args(argv)
    with exit_codes():
        run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mode-import", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("destination", nargs="?", type=Path, help="default: runs/imported/<name>")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="what the cameras showed (default: libero)")
    parser.add_argument("--cameras", nargs=2, metavar=("STATIC", "GRIPPER"), help="your names of the cameras")
    parser.add_argument("--resolution", nargs=2, type=int, metavar="PX", help="sides of your cameras' images")
    parser.add_argument("--size", nargs=2, type=int, metavar="PX", help="sides of the networks' inputs")
    parser.add_argument(
        "--upside-down",
        action=argparse.BooleanOptionalAction,
        help="whether the networks saw images upside down, as OpenGL gives them",
    )
    parser.add_argument("--task", help="a task of conf/task whose instructions are embedded")
    parser.add_argument("--instruction", action="append", default=[], help="an instruction to embed")
    parser.add_argument(
        "--clip",
        choices=("inside", "hub"),
        help="which CLIP embeds instructions (default: the one inside the checkpoint, else the hub's)",
    )
    parser.add_argument(
        "--vocabulary", type=Path, metavar="FILE", help="bpe_simple_vocab_16e6.txt.gz, for the CLIP inside"
    )
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights act")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the policy, e.g. sampler.steps=5"
    )
    return parser


def run(arguments: argparse.Namespace) -> Path:
    """Import a checkpoint; return the folder that was made.

    Raises:
        CheckpointError: if the source cannot be read, or is not a MoDE policy.
        ConfigError: if the destination exists, or an option cannot be used.
    """
    source, name = _locate(arguments.source)
    destination = arguments.destination or Path("runs/imported") / name
    if destination.exists():
        raise ConfigError(f"{destination} exists; give another destination")
    task = None if arguments.task is None else _task(arguments.task)
    published = read_published(source, averaged=arguments.weights == "ema")
    table, origin = _instructions(task, arguments, published)
    preset = arguments.preset or preset_of(published.settings) or "libero"
    images = _images(PRESETS[preset], arguments)
    imported = import_policy(published, images, overrides=arguments.set, instructions=table)
    about = {
        "imported_from": str(published.path),
        "sha256": sha256(published.path),
        "preset": preset,
        **({} if task is None else {"task": asdict(task)}),
        **({} if table is None else {"instructions_embedded_by": origin}),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **published.about,
    }
    save_checkpoint(destination, imported.policy, imported.raw, about=about)
    announce(published, imported, images, preset, origin)
    console.print(f"checkpoint {destination}")
    return destination


def _locate(source: str) -> tuple[Path, str]:
    """Return the local file or folder, and a name for the checkpoint made of it."""
    path = Path(source).expanduser()
    if path.exists() or not re.fullmatch(r"[\w-]+/[\w.-]+", source):
        path = path.absolute()
        generic = path.stem in ("last", "model_cleaned", "model")
        return path, path.parent.name if generic else path.stem
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors", "*.ckpt", "*.pt", "*.json", "*.yaml"]
        return Path(snapshot_download(source, allow_patterns=patterns)), source.split("/")[1]
    except ImportError as error:
        raise ConfigError("the hub needs: pip install 'mode-policy[language]'") from error
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"there is no file or folder {source}, and the hub gave no repository of that name: {reason}"
        ) from error


def _task(name: str) -> TaskConfig:
    return build(TaskConfig, to_plain(compose("train", [f"task={name}"]))["task"], "task")


def _instructions(
    task: TaskConfig | None, arguments: argparse.Namespace, published: PublishedFile
) -> tuple[InstructionTable | None, str]:
    """Return the embedded instructions, if there are any, and what embedded them, in words.

    The CLIP inside is used where there is one. Averaging does not concern it: it was frozen.
    """
    texts = list(arguments.instruction)
    if task is not None:
        texts += [t.task.instruction for t in env_tasks(task)]
    inside = {} if arguments.clip == "hub" else text_tensors(published.raw)
    if arguments.clip == "inside" and not inside:
        raise ConfigError(f"{published.path} holds no CLIP; --clip hub fetches it")
    if arguments.vocabulary is not None and not inside:
        raise ConfigError("--vocabulary is for the CLIP inside a checkpoint; the one of the hub has its own")
    if not texts:
        return None, LANGUAGE
    if inside:
        embed = embed_with(inside, arguments.vocabulary)
        return embed_instructions(texts, LANGUAGE, embed), "the CLIP inside the checkpoint"
    return embed_instructions(texts, LANGUAGE), f"{LANGUAGE} of the hub"


def _images(preset: Images, arguments: argparse.Namespace) -> Images:
    """Return the preset with the options of the command line on top."""
    given = {name: getattr(arguments, name) for name in ("cameras", "resolution", "size", "upside_down")}
    changes: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None
    }
    return replace(preset, **changes)


def announce(
    published: PublishedFile, imported: ImportedPolicy, images: Images, preset: str, embedded_by: str
) -> None:
    """Say what was found, what became of each tensor, and what was assumed."""
    policy = imported.policy
    d = policy.config.denoiser
    console.print(f"source     {published.path}")
    console.print(
        f"policy     {imported.known}: {d.num_layers} layers, width {d.dim}, {d.experts.active} of "
        f"{d.experts.num} experts, {_millions(policy)}"
    )
    seen = ", ".join(
        f"{n} {r} px → {s} px" for n, r, s in zip(images.cameras, images.resolution, images.size, strict=True)
    )
    vision = policy.config.vision
    console.print(
        f"cameras    {vision.network} (FiLM by {vision.film}): {seen}"
        + (", shown upside down" if images.upside_down else "")
        + f" (preset {preset})"
    )
    console.print(f"actions    {policy.action_dim} dimensions in [-1, 1]")
    console.print(f"tensors    {imported.used} used")
    for reason, names in imported.skipped.items():
        console.print(f"           {len(names)} not used, {names[0]} …: {reason}")
    console.print(
        "weights    averaged over training (EMA)" if published.averaged else "weights    as the file has them"
    )
    s = policy.config.sampler
    console.print(
        f"sampling   {s.name}, {s.steps} steps, {s.schedule} from {s.sigma_max:g} to {s.sigma_min:g}"
    )
    table = policy.instructions
    count = len(table.instructions) if table is not None else 0
    console.print(
        f"language   {count} instructions embedded by {embedded_by}"
        + ("" if count else "; to act, import with --task or --instruction, or finetune")
    )


def _millions(policy: MoDEPolicy) -> str:
    return f"{sum(p.numel() for p in policy.parameters()) / 1e6:.1f} M parameters"
