"""Time of one action chunk beside the authors' code, in turns, in one process.

    uv run benchmarks/latency.py                        our engines alone, at full size
    uv run benchmarks/latency.py --authors FOLDER       and the authors' network, its cache off and on
    uv run benchmarks/latency.py --size small --record  something that runs in seconds, with a record

``FOLDER`` is a checkout of the authors' repository. Batch 1, random weights (what is measured does not depend
on them), 14 tokens. Beside each time stands its ratio to the floor (`mode_policy.apps.bench.floor`) and to
the authors' network without and with its cache; on a GPU that network also runs under bfloat16 autocast. Our
engines alone, other batches and precisions, and their memory: ``mode-bench latency``.
"""

import argparse
import gc
import importlib.util
import itertools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parents[1]]

import torch  # noqa: E402
from rich import print  # noqa: E402

from mode_policy.apps.bench.floor import floor, measure  # noqa: E402
from mode_policy.apps.bench.main import table  # noqa: E402
from mode_policy.apps.bench.memory import Setting, measured  # noqa: E402
from mode_policy.apps.bench.policies import (  # noqa: E402
    ACTION_DIM,
    CHUNK,
    GOAL_DIM,
    SIZES,
    STATE_DIM,
    Size,
    random_observation,
    random_policy,
)
from mode_policy.apps.bench.record import RESULTS, device, write_record  # noqa: E402
from mode_policy.apps.bench.timing import in_turns, percentiles  # noqa: E402
from mode_policy.diffusion.schedules import grid  # noqa: E402
from mode_policy.inference.auto import ENGINES, make_engine  # noqa: E402
from mode_policy.inference.plan import InferencePlan  # noqa: E402
from mode_policy.inference.weights import PRECISIONS  # noqa: E402

STEPS, OBSERVATIONS = 10, 2


def authors_chunk(folder: Path, size: Size, device: str, cached: bool, half: bool) -> Callable[[], object]:
    """The authors' network in a DDIM loop of their preconditioning."""
    spec = importlib.util.spec_from_file_location("authors", folder / "mode/models/networks/modedit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.MoDeDiT(
        obs_dim=STATE_DIM,
        goal_dim=GOAL_DIM,
        device=device,
        goal_conditioned=True,
        action_dim=ACTION_DIM,
        embed_dim=size.dim,
        embed_pdrob=0,
        attn_pdrop=0,
        mlp_pdrop=0,
        goal_drop=0,
        n_layers=size.layers,
        n_heads=size.heads,
        goal_seq_len=1,
        obs_seq_len=1,
        action_seq_len=CHUNK,
        state_dim=9,
    )
    model = model.to(device).eval()
    state = torch.randn(1, OBSERVATIONS, STATE_DIM, device=device)
    goal = torch.randn(1, 1, GOAL_DIM, device=device)
    sigmas = grid("exponential", STEPS, 0.001, 80.0)
    autocast = torch.autocast(device, torch.bfloat16, enabled=half)
    if cached:
        with torch.no_grad(), autocast:
            for sigma in sigmas[:-1]:
                model.precompute_experts_for_inference(torch.tensor([sigma], device=device), goal)

    @torch.no_grad()
    def chunk() -> torch.Tensor:
        x = torch.randn(1, CHUNK, ACTION_DIM, device=device) * sigmas[0]
        for sigma, after in itertools.pairwise(sigmas):
            total = sigma**2 + 0.25
            skip, out, into = 0.25 / total, sigma * 0.5 / total**0.5, total**-0.5
            with autocast:
                f = model({"state_images": state}, x * into, goal, torch.tensor([sigma], device=device))
            x = after / sigma * x + (1 - after / sigma) * (skip * x + out * f.float())
        return x

    return chunk


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found = "cuda" if torch.cuda.is_available() else "cpu"
    usual = ["cpu", "eager"] if found == "cpu" else ["compile", "triton", "eager"]
    parser.add_argument("--authors", type=Path, help="checkout of the authors' repository")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=usual)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--rounds", type=int, default=5 if found == "cpu" else 200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default=found)
    parser.add_argument("--record", nargs="?", type=Path, const=RESULTS, metavar="FOLDER")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    about = device()
    rates = measure(torch.device(arguments.device))
    memory = measured(
        Setting(
            size=arguments.size,
            checkpoint=None,
            cameras=False,
            engine=arguments.engines[0],
            precision=arguments.precision,
            batch=1,
            device=arguments.device,
            threads=arguments.threads,
        )
    )
    over = (memory.peak - memory.before) / memory.weights
    print(f"engine {arguments.engines[0]}, in a process of its own: {memory.peak:.2f} GB at most, "
          f"{memory.before:.2f} of it before the policy, whose weights are {memory.weights:.2f} GB: "
          f"{over:.3f} of them")  # fmt: skip
    policy = random_policy(SIZES[arguments.size], steps=STEPS).to(arguments.device)
    observation = random_observation(policy, 1)
    plan = InferencePlan(policy, precision=arguments.precision)
    least = floor(plan, observation, rates)
    print(f"floor {least.seconds:.4f} s: {least.gigabytes:.2f} GB of weights at {rates.read / 1e9:.1f} GB/s, "
          f"{least.giga_multiply_adds:.2f} G multiply-adds at {rates.products / 1e9:.1f} G/s")  # fmt: skip
    engines = [make_engine(plan, name).engine for name in arguments.engines]
    runs: dict[str, Callable[[], object]] = {
        f"engine {e.name}": lambda e=e: e.act(observation)  # type: ignore[misc]
        for e in engines
    }
    runs["policy.act"] = lambda: policy.act(observation)
    if arguments.authors:
        for half in (False, True) if arguments.device == "cuda" else (False,):
            for cached in (False, True):
                gc.collect()
                name = f"authors, {'bfloat16, ' * half}cache {'on' if cached else 'off'}"
                size = SIZES[arguments.size]
                runs[name] = authors_chunk(arguments.authors, size, arguments.device, cached, half)
    times = in_turns(runs, arguments.rounds, warm_up=1)
    rows = []
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        row = {"what": name} | percentiles(seconds) | {"over_floor": round(middle / least.seconds, 2)}
        for other in (n for n in times if n.startswith("authors")):
            row[f"over {other}"] = round(middle / statistics.median(times[other]), 3)
        rows.append(row)
    print(table(f"one chunk, {arguments.size}", rows))
    config = vars(arguments) | {"steps": STEPS, "batch": 1, "tokens": plan.sequence}
    config = {k: str(v) if isinstance(v, Path) else v for k, v in config.items()}
    config |= {"read_GBps": round(rates.read / 1e9, 2), "product_GMACps": round(rates.products / 1e9, 2)}
    config |= {"floor_ms": 1e3 * least.seconds, "read_GB": least.gigabytes, "GMAC": least.giga_multiply_adds}
    if arguments.record:
        config |= {"peak_GB": memory.peak, "before_GB": memory.before, "peak_over_weights": round(over, 3)}
        print(write_record(f"latency_authors_{arguments.size}", rows, config, arguments.record, about))


if __name__ == "__main__":
    main()
