"""Time of a training step: forward, backward, AdamW.

    uv run benchmarks/training_step.py                        our denoiser
    uv run benchmarks/training_step.py --authors FOLDER       beside the authors' code, in turns, in one run

``FOLDER`` is a checkout of the authors' repository; its network is imported from there, trained with AdamW as
they do, and compared at the same sizes on the same random data. Both run without dropout. Writes a
record to ``benchmarks/results/`` with ``--record``.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parents[1]]

import torch  # noqa: E402
from _authors import authors_module  # noqa: E402

from mode_policy.apps.bench.main import check_device, count  # noqa: E402
from mode_policy.apps.bench.policies import Size  # noqa: E402
from mode_policy.apps.bench.record import RESULTS, prepare_folder, write_record  # noqa: E402
from mode_policy.apps.bench.training import (  # noqa: E402
    ACTION_DIM,
    CHUNK,
    GOAL_DIM,
    STATE_DIM,
    data,
    our_step,
)
from mode_policy.apps.cli import exit_codes  # noqa: E402

SIZES = {
    "width 64, 4 layers, batch 128": (Size(64, 4, 4), 128),
    "width 256, 6 layers, batch 64": (Size(256, 6, 8), 64),
}


def authors_step(module: ModuleType, size: Size, batch: int, device: str) -> Callable[[], None]:
    x, state, goal, target, sigma = data(batch, device)
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
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        prediction = model({"state_images": state}, x, goal[:, None], sigma)
        ((prediction - target).square().mean() + 0.01 * model.load_balancing_loss()).backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--authors", type=Path, help="checkout of the authors' repository")
    parser.add_argument("--steps", type=count, default=30)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    with exit_codes():
        check_device(arguments.device)
        if arguments.record:
            prepare_folder(RESULTS)
        module = None if arguments.authors is None else authors_module(arguments.authors)
    rows = []
    for name, size in SIZES.items():
        steps = {"ours": our_step(*size, arguments.device)}
        if module is not None:
            steps["authors"] = authors_step(module, *size, arguments.device)
        times: dict[str, list[float]] = {k: [] for k in steps}
        for i in range(arguments.steps + 3):
            for who, step in steps.items():
                seconds = timed(step, arguments.device)
                if i >= 3:
                    times[who].append(seconds)
        row = {"size": name} | {
            f"{who}_{label}_ms": round(1e3 * value, 2)
            for who, seconds in times.items()
            for label, value in (("p50", statistics.median(seconds)), ("min", min(seconds)))
        }
        if module is not None:
            row["ratio_p50"] = round(
                statistics.median(times["authors"]) / statistics.median(times["ours"]), 2
            )
            row["ratio_min"] = round(min(times["authors"]) / min(times["ours"]), 2)
        rows.append(row)
        print(row, flush=True)
    if arguments.record:
        print(write_record("training_step", rows, {"steps": arguments.steps, "device": arguments.device}))


if __name__ == "__main__":
    main()
