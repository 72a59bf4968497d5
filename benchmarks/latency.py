"""Time of one action chunk at full size: the engines, the plain policy and, beside them, the authors' code.

    uv run benchmarks/latency.py                        engines of this machine
    uv run benchmarks/latency.py --authors FOLDER       and the authors' network, its cache off and on
    uv run benchmarks/latency.py --size small           something that runs in a second

Float32, batch 1, random weights (what is measured does not depend on them). All run in turns in one process;
the floor is printed beside: bytes of the weights that a chunk touches over this machine's read bandwidth, and
    its
multiply-adds over the rate of a large product. Writes a record to ``benchmarks/results/`` with ``--record``.
"""

import argparse
import gc
import importlib.util
import itertools
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parents[1]]

import numpy as np  # noqa: E402
import torch  # noqa: E402

from mode_policy.apps.bench.record import RESULTS, write_record  # noqa: E402
from mode_policy.apps.bench.timing import in_turns  # noqa: E402
from mode_policy.config import PolicyConfig, SamplerConfig, build  # noqa: E402
from mode_policy.diffusion.schedules import grid  # noqa: E402
from mode_policy.inference.cpu import CpuEngine  # noqa: E402
from mode_policy.inference.engine import CompileEngine, EagerEngine  # noqa: E402
from mode_policy.inference.plan import InferencePlan  # noqa: E402
from mode_policy.normalization import compute_statistics  # noqa: E402
from mode_policy.policy import MoDEPolicy  # noqa: E402
from mode_policy.types import ACTION, STATE, Feature, InstructionTable, Observation  # noqa: E402

SIZES = {"full": (1024, 12, 8), "small": (128, 4, 4)}
STATE_DIM, GOAL_DIM, ACTION_DIM, CHUNK, HISTORY, STEPS = 1024, 512, 7, 10, 2, 10


def make_policy(dim: int, layers: int, heads: int) -> MoDEPolicy:
    """Our policy with random weights: 14 tokens, as with two cameras."""
    config = build(
        PolicyConfig,
        {
            "chunk": CHUNK,
            "execute": CHUNK,
            "history": HISTORY,
            "sampler": {"steps": STEPS},
            "denoiser": {"dim": dim, "num_layers": layers, "num_heads": heads},
        },
    )
    features = {STATE: Feature(shape=(STATE_DIM,)), ACTION: Feature(shape=(ACTION_DIM,))}
    rng = np.random.default_rng(0)
    samples = {k: rng.normal(size=(50, *f.shape)).astype(np.float32) for k, f in features.items()}
    assert config.language is not None
    table = InstructionTable(
        encoder=config.language, instructions=("go",), embeddings=torch.randn(1, GOAL_DIM)
    )
    return MoDEPolicy(config, features, compute_statistics(samples), table).eval()


def authors_chunk(folder: Path, dim: int, layers: int, heads: int, cached: bool) -> Callable[[], object]:
    """The authors' network in a DDIM loop of their preconditioning."""
    spec = importlib.util.spec_from_file_location("authors", folder / "mode/models/networks/modedit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.MoDeDiT(
        obs_dim=STATE_DIM,
        goal_dim=GOAL_DIM,
        device="cpu",
        goal_conditioned=True,
        action_dim=ACTION_DIM,
        embed_dim=dim,
        embed_pdrob=0,
        attn_pdrop=0,
        mlp_pdrop=0,
        goal_drop=0,
        n_layers=layers,
        n_heads=heads,
        goal_seq_len=1,
        obs_seq_len=1,
        action_seq_len=CHUNK,
        state_dim=9,
    ).eval()
    state, goal = torch.randn(1, HISTORY, STATE_DIM), torch.randn(1, 1, GOAL_DIM)
    sigmas = grid("exponential", STEPS, 0.001, 80.0)
    if cached:
        with torch.no_grad():
            for sigma in sigmas[:-1]:
                model.precompute_experts_for_inference(torch.tensor([sigma]), goal)

    @torch.no_grad()
    def chunk() -> torch.Tensor:
        x = torch.randn(1, CHUNK, ACTION_DIM) * sigmas[0]
        for sigma, after in itertools.pairwise(sigmas):
            total = sigma**2 + 0.25
            skip, out, into = 0.25 / total, sigma * 0.5 / total**0.5, total**-0.5
            f = model({"state_images": state}, x * into, goal, torch.tensor([sigma]))
            x = after / sigma * x + (1 - after / sigma) * (skip * x + out * f)
        return x

    return chunk


def floor(dim: int, layers: int) -> dict[str, float]:
    """Seconds that a chunk takes at least, by bytes and by multiply-adds."""
    weights = layers * (
        4 * dim * dim + 2 * 12 * dim * dim
    )  # attention, and two experts of 8 + 4 widths squared
    rows = HISTORY + CHUNK + 2
    data = torch.empty(2**28)
    sums = in_turns({"read": lambda: data.sum()}, 5)["read"]
    square = torch.randn(2048, 2048)
    products = in_turns({"mm": lambda: square @ square}, 5)["mm"]
    bandwidth, rate = data.numel() * 4 / min(sums), 2 * 2048**3 / min(products)
    return {
        "bytes_s": STEPS * weights * 4 / bandwidth,
        "products_s": STEPS * 2 * weights * rows / rate,
        "read_GBps": bandwidth / 1e9,
        "product_GFLOPps": rate / 1e9,
    }


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--authors", type=Path, help="checkout of the authors' repository")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--compile", action="store_true", help="also the engine 'compile', which takes minutes"
    )
    parser.add_argument("--record", nargs="?", type=Path, const=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    least = floor(*SIZES[arguments.size][:2])
    print({k: round(v, 3) for k, v in least.items()}, flush=True)

    before = peak_gigabytes()
    policy = make_policy(*SIZES[arguments.size])
    gigabytes = sum(p.numel() * p.element_size() for p in policy.parameters()) / 1e9
    plan = InferencePlan(policy, SamplerConfig(steps=STEPS))
    observation = Observation(
        states={STATE: torch.randn(1, HISTORY, STATE_DIM)}, instruction=torch.randn(1, GOAL_DIM)
    )
    cpu = CpuEngine(plan)
    cpu.act(observation)
    memory = (peak_gigabytes() - before) / gigabytes
    engines = [cpu, EagerEngine(plan), *([CompileEngine(plan)] if arguments.compile else [])]
    runs: dict[str, Callable[[], object]] = {
        f"engine {engine.name}": lambda engine=engine: engine.act(observation) for engine in engines
    }
    runs["policy.act"] = lambda: policy.act(observation)
    if arguments.authors:
        for label, cached in (("authors, cache off", False), ("authors, cache on", True)):
            gc.collect()
            runs[label] = authors_chunk(arguments.authors, *SIZES[arguments.size], cached)
    times = in_turns(runs, arguments.rounds, warm_up=1)
    rows = []
    for name, seconds in times.items():
        row = {
            "what": name,
            "p50_s": round(statistics.median(seconds), 4),
            "min_s": round(min(seconds), 4),
            "over_floor": round(statistics.median(seconds) / max(least["bytes_s"], least["products_s"]), 2),
        }
        for other in ("cache off", "cache on"):
            if f"authors, {other}" in times:
                ratio = statistics.median(seconds) / statistics.median(times[f"authors, {other}"])
                row[f"over_authors_{other.replace(' ', '_')}"] = round(ratio, 3)
        rows.append(row)
        print(row, flush=True)
    print(f"peak memory of our policy and its plan: {memory:.2f} of its weights ({gigabytes:.2f} GB)")
    if arguments.record:
        config = {"size": arguments.size, "threads": arguments.threads, "steps": STEPS, "batch": 1}
        extra = {"floor": least, "peak_memory_over_weights": round(memory, 3)}
        print(write_record(f"latency_{arguments.size}", rows, config | extra, arguments.record))


if __name__ == "__main__":
    main()
