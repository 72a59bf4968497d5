"""Time of one action chunk beside the authors' code, in turns, in one process.

    uv run benchmarks/latency.py --authors FOLDER --record              at full size
    uv run benchmarks/latency.py --authors FOLDER --size small          in a few seconds

``FOLDER`` is a checkout of the authors' repository. Their network, as it is shipped (cache off) and with the
cache on that they describe, gets the very weights of ours, so that all compute the same chunk: ``error`` is
the largest difference of actions from ours in float32, as a share of the largest action. Batch 1, 14 tokens,
DDIM, random weights. On a GPU their network also runs under bfloat16 autocast. The other columns are those of
``mode-bench latency``, which measures our engines alone, other batches and policies.

At full size the process takes up to 12 GB; the copies that their cache makes for each step are shared where
they are equal.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parents[1]]

import torch  # noqa: E402
from _authors import authors_module  # noqa: E402
from torch import Tensor  # noqa: E402

from mode_policy.apps.bench.engines import NAMES  # noqa: E402
from mode_policy.apps.bench.latency import Act, LatencyBench, run  # noqa: E402
from mode_policy.apps.bench.main import check_device, count, show  # noqa: E402
from mode_policy.apps.bench.policies import SIZES  # noqa: E402
from mode_policy.apps.bench.record import RESULTS, Row, device, prepare_folder, write_record  # noqa: E402
from mode_policy.apps.cli import console, exit_codes  # noqa: E402
from mode_policy.diffusion.schedules import grid  # noqa: E402
from mode_policy.inference.weights import PRECISIONS, Precision  # noqa: E402
from mode_policy.policy import MoDEPolicy  # noqa: E402
from mode_policy.published import UNUSED, to_published  # noqa: E402
from mode_policy.types import Observation  # noqa: E402


def network(module: ModuleType, policy: MoDEPolicy) -> Any:
    """The authors' network with our weights: the same memory under their names."""
    config = policy.denoiser.config
    model = module.MoDeDiT(
        obs_dim=policy.denoiser.observation_embedding.in_features,
        goal_dim=policy.goal_dim,
        device=str(policy.device),
        goal_conditioned=True,
        action_dim=policy.action_dim,
        embed_dim=config.dim,
        embed_pdrob=0,
        attn_pdrop=0,
        mlp_pdrop=0,
        goal_drop=0,
        n_layers=config.num_layers,
        n_heads=config.num_heads,
        goal_seq_len=1,
        obs_seq_len=1,
        action_seq_len=policy.config.chunk,
        state_dim=9,
    )
    weights = to_published(policy.denoiser.state_dict(), config)
    # All their observation tokens share a position. Ours have one for each step of the history, here alike.
    weights["pos_emb"] = weights["pos_emb"][:, [0, *range(2, weights["pos_emb"].shape[1])]]
    left = model.load_state_dict(weights, strict=False, assign=True)
    unused = {name.split(".")[0] for name in UNUSED}
    assert not left.unexpected_keys, left.unexpected_keys
    assert {name.split(".")[0] for name in left.missing_keys} <= unused, left.missing_keys
    return model.to(policy.device).eval()


@contextmanager
def caching(model: Any, caches: list[dict[float, Any]] | None) -> Iterator[None]:
    """Their blocks with caches, and the proof that each of them was hit, or with none."""
    for i, block in enumerate(model.blocks):
        block.fused_experts = {} if caches is None else caches[i]
        block.total_tokens_processed = 0
    yield
    counted = [block.total_tokens_processed > 0 for block in model.blocks]
    if any(counted) != (caches is None):
        raise RuntimeError(f"the authors' cache was {'hit' if caches is None else 'missed'}")


def share(model: Any) -> None:
    """Let steps with the same experts share one copy of them.

    As shipped each step of each layer copies its own, 12 GB at full size. A step reads 1.2 GB in either case,
    more than any cache holds, so this makes their chunk no slower; it fits beside ours into memory.
    """
    for block in model.blocks:
        first: dict[tuple[int, ...], Any] = {}
        for level, fused in block.fused_experts.items():
            same = first.setdefault(tuple(block.routing_info[level]["indices"].tolist()), fused)
            fused.w1, fused.w2 = same.w1, same.w2


def authors(module: ModuleType, half: bool) -> Callable[..., Mapping[tuple[str, Precision], Act]]:
    """Their chunks, for `mode_policy.apps.bench.latency.run`; with ``half`` in bfloat16, too."""

    def rivals(
        policy: MoDEPolicy, observation: Observation, noise_BCA: Tensor
    ) -> dict[tuple[str, Precision], Act]:
        model, sampler = network(module, policy), policy.config.sampler
        sigmas = grid(sampler.schedule, sampler.steps, sampler.sigma_min, sampler.sigma_max)
        with torch.no_grad():
            tokens_BOT, goal_BG = policy.encode(observation)
        goal_B1G = goal_BG[:, None]

        def chunk(precision: Precision, caches: list[dict[float, Any]] | None) -> Tensor:
            """A DDIM loop of their preconditioning."""
            autocast = torch.autocast(policy.device.type, torch.bfloat16, enabled=precision == "bfloat16")
            x = noise_BCA * sigmas[0]
            with torch.no_grad(), caching(model, caches):
                for sigma, after in itertools.pairwise(sigmas):
                    total = sigma**2 + policy.config.sigma_data**2
                    skip, out = (
                        policy.config.sigma_data**2 / total,
                        sigma * policy.config.sigma_data / total**0.5,
                    )
                    with autocast:
                        level = torch.tensor([sigma], device=policy.device)
                        f = model({"state_images": tokens_BOT}, x * total**-0.5, goal_B1G, level)
                    x = after / sigma * x + (1 - after / sigma) * (skip * x + out * f.float())
            return policy.action_normalizer.inverse(x.clamp(-1, 1))

        found: dict[tuple[str, Precision], Act] = {}
        precisions: tuple[Precision, ...] = ("float32", "bfloat16") if half else ("float32",)
        for precision in precisions:
            model.reset_all_caches()
            with (
                torch.no_grad(),
                torch.autocast(policy.device.type, torch.bfloat16, enabled=precision != "float32"),
            ):
                for sigma in sigmas[:-1]:
                    level = torch.tensor([sigma], device=policy.device)
                    model.precompute_experts_for_inference(level, goal_B1G)
                    share(model)
            caches = [block.fused_experts for block in model.blocks]
            found["authors, cache off", precision] = lambda p=precision: chunk(p, None)  # type: ignore[misc]
            found["authors, cache on", precision] = lambda p=precision, c=caches: chunk(p, c)  # type: ignore[misc]
        return found

    return rivals


def with_ratios(rows: list[Row]) -> list[Row]:
    """Rows with the ratios of their medians to those of the authors' code."""
    theirs = [row for row in rows if row["engine"].startswith("authors")]
    names = [
        f"over_{row['engine'].replace(', cache ', '_')}{'_bfloat16' * (row['precision'] == 'bfloat16')}"
        for row in theirs
    ]
    return [
        row | {n: round(row["p50_ms"] / other["p50_ms"], 3) for n, other in zip(names, theirs, strict=True)}
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found = "cuda" if torch.cuda.is_available() else "cpu"
    usual = ["cpu", "eager", "policy"] if found == "cpu" else ["triton", "compile", "eager", "policy"]
    parser.add_argument("--authors", type=Path, required=True, help="checkout of the authors' repository")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--engines", nargs="+", choices=NAMES, default=usual)
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        default=["float32", "int8"],
        help="the first is that of all engines, the others are of the first engine alone",
    )
    parser.add_argument("--steps", type=count, default=10, help="of the sampler")
    parser.add_argument("--rounds", type=count, default=8 if found == "cpu" else 1000)
    parser.add_argument("--threads", type=count, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default=found)
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--record", nargs="?", type=Path, const=RESULTS, metavar="FOLDER")
    arguments = parser.parse_args()
    first, *others = arguments.precisions
    with exit_codes():
        check_device(arguments.device)
        if arguments.record:
            prepare_folder(arguments.record)
        module = authors_module(arguments.authors)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    about = device()
    config = LatencyBench(
        size=arguments.size,
        runs=(*((name, first) for name in arguments.engines), *((arguments.engines[0], p) for p in others)),
        steps=arguments.steps,
        rounds=arguments.rounds,
        device=arguments.device,
        memory=not arguments.no_memory,
    )
    with exit_codes():
        rows, machine = run(
            config,
            lambda text: console.print(f"measuring  {text}"),
            authors(module, arguments.device == "cuda"),
        )
        rows = with_ratios(rows)
        show(f"one chunk, {arguments.size}", rows, about)
        if arguments.record:
            name = f"latency_authors_{arguments.size}"
            console.print(
                f"record     {write_record(name, rows, asdict(config) | machine, arguments.record, about)}"
            )


if __name__ == "__main__":
    main()
