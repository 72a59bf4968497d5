"""What sharded processes write and read, held to PyTorch's own gathering; see test_sharding."""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)

from mode_policy.training.sharding import is_sharded
from mode_policy.training.trainer import Trainer
from tests.training.shared_run import make

OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True, flatten_optimizer_state_dict=True)


def gathered(trainer: Trainer) -> dict[str, dict[str, torch.Tensor]]:
    """Everything that a checkpoint holds, by file, gathered by `torch.distributed.checkpoint`."""
    optimizer = get_optimizer_state_dict(trainer.policy, trainer.optimizer, options=OPTIONS)
    moments = {}
    for name in (n for n in optimizer if n.startswith("state.")):
        parameter, entry = name.removeprefix("state.").rsplit(".", 1)
        moments[f"{parameter}/{entry}"] = torch.as_tensor(optimizer[name])
    return {
        "weights.safetensors": get_model_state_dict(trainer.ema, options=OPTIONS),
        "weights_raw.safetensors": get_model_state_dict(trainer.policy, options=OPTIONS),
        "training/optimizer.safetensors": moments,
    }


def check(trainer: Trainer, checkpoint: Path) -> None:
    """Hold the processes' state to the bits on disk; a share of it is not all of it."""
    assert any(is_sharded(p) for p in trainer.policy.parameters())
    for file, tensors in gathered(trainer).items():
        if trainer.processes.main:  # the others are given nothing
            saved = load_file(checkpoint / file)
            assert saved.keys() == tensors.keys(), file
            assert all(torch.equal(saved[name], value) for name, value in tensors.items()), file


def main(run: str, written_by_one: str) -> None:
    """Train, write, read it again; then read what a single process wrote."""
    trainer = make(Path(run), steps=4, sharding="full")
    trainer.run()
    check(trainer, trainer.checkpoints.last)
    for source in (trainer.checkpoints.last, Path(written_by_one)):
        again = make(Path(run), steps=8, sharding="full", processes=trainer.processes)
        again.resume(source)
        check(again, source)
    trainer.processes.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
