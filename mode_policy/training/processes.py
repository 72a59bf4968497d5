"""The processes that train one policy together; without ``torchrun`` or ``accelerate launch`` there is one.

Each sees its own rows of the global batch, and a step is that of one process with the whole batch, up to the
order of summation: gradients are averaged, draws are made for the whole batch (`RowsOfAll`), and what belongs
to the whole batch in the loss is summed over processes (`mode_policy.training.loss`). Two things stay each
process's own: the masks of dropout, and the batch statistics of an image encoder's normalisation.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mode_policy.errors import ConfigError
from mode_policy.training.config import TrainerConfig

#: How long processes wait for the main one, e.g. while it collects demonstrations.
_PATIENCE = datetime.timedelta(days=1)


class Processes:
    """This process among those that train together.

    Attributes:
        accelerator: knows device and precision, and averages gradients.
        rank: number of this process, from 0.
        count: how many there are.
        share: windows of a step that this process sees.
        parts: in which it goes through them.

    Raises:
        ConfigError: if there is no such device, or the processes cannot share a batch evenly.
    """

    def __init__(self, config: TrainerConfig) -> None:
        self.accelerator = _accelerator(config)
        self.rank: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        self.parts = config.accumulate
        self.share = even_share(config.batch_size, self.count, self.parts)
        # A compiled graph takes no generator: there each process draws on its own.
        self._draw_for_all = not config.compile
        # Agreements go over the hosts, so that they never wait for a GPU.
        self._hosts = dist.new_group(backend="gloo", timeout=_PATIENCE) if self.count > 1 else None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of every process's ``x``."""
        return self.accelerator.reduce(x, "sum") if self.count > 1 else x

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """Return the latest clock of all processes, and whether any of them wants to stop."""
        if self.count == 1:
            return seconds, stop
        both = torch.tensor([seconds, float(stop)], dtype=torch.float64)
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self._hosts)
        return both[0].item(), bool(both[1])

    def from_main(self, value: str) -> str:
        """Return the main process's ``value`` everywhere."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._hosts)
        return values[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process go through the block before the others do."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def any(self, flag: bool) -> bool:
        """Return whether it is so in any process."""
        return self.agree(0.0, flag)[1]

    def check_same(self, values: Mapping[str, Any]) -> None:
        """Hold every process's named values to the main one's.

        Raises:
            ConfigError: in all of them, naming a process that differs, and in what.
        """
        if self.count == 1:
            return
        everyone: list[Mapping[str, Any]] = [{}] * self.count
        dist.all_gather_object(everyone, values, group=self._hosts)
        first = everyone[0]
        for rank, theirs in enumerate(everyone):
            if differ := [name for name in first if theirs.get(name) != first[name]]:
                what = ", ".join(f"{name} is {theirs.get(name)}, not {first[name]}" for name in differ[:5])
                raise ConfigError(
                    f"process {rank} is not like process 0: {what}; all of them need the same data and "
                    "settings"
                )

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier(group=self._hosts)

    def close(self) -> None:
        """Part for good; each process goes on alone."""
        if self.count > 1:
            dist.destroy_process_group()

    @contextmanager
    def draws(self, seed: int, step: int, part: int = 0) -> Iterator[torch.Generator | None]:
        """Prepare the randomness of a step's part, a pure function of seed, step and place in the batch.

        Yields the generator for whatever is drawn in the forward pass, or None for the global one.
        """
        place, places = self.rank * self.parts + part, self.count * self.parts
        if places == 1:
            torch.manual_seed(step_seed(seed, step))
            yield None
            return
        torch.manual_seed(step_seed(seed, step, stream=1 + place))
        if not self._draw_for_all:
            yield None
            return
        generator = torch.Generator(self.accelerator.device).manual_seed(step_seed(seed, step))
        with RowsOfAll(generator, place, places):
            yield generator


class RowsOfAll(TorchFunctionMode):
    """Within this context, what is drawn with ``generator`` is drawn for the rows of all places of the batch.

    A place is a process's part of its share. All hold equal generators; each draws ``count`` times the rows
    that it was asked for and takes its own. Together they then draw what one draws for the whole batch.
    """

    _NEW: tuple[Callable[..., Tensor], ...] = (torch.rand, torch.randn, torch.randint)
    _FILL: tuple[Callable[..., Tensor], ...] = (Tensor.normal_, Tensor.uniform_, Tensor.exponential_)

    def __init__(self, generator: torch.Generator, place: int, count: int) -> None:
        super().__init__()
        self.generator = generator
        self.place = place
        self.count = count

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not self.generator:
            return function(*args, **kwargs)
        if function in self._NEW:
            *limits, size = args if isinstance(args[-1], tuple) else (args,)
            rows, *rest = size
            return self._own(function(*limits, (rows * self.count, *rest), **kwargs), rows)
        if function in self._FILL:
            x, *parameters = args
            whole = x.new_empty((len(x) * self.count, *x.shape[1:]))
            return x.copy_(self._own(function(whole, *parameters, **kwargs), len(x)))
        raise NotImplementedError(f"{function} does not draw row by row; add it to RowsOfAll if it does")

    def _own(self, whole: Tensor, rows: int) -> Tensor:
        return whole[self.place * rows : (self.place + 1) * rows]


def even_share(batch_size: int, count: int, parts: int = 1) -> int:
    """Return how many windows of the global batch each of ``count`` processes sees, in ``parts``.

    Raises:
        ConfigError: unless they can share it evenly.
    """
    size, left = divmod(batch_size, count * parts)
    if left:
        split = f"{count} processes" + (f" in trainer.accumulate={parts} parts" if parts > 1 else "")
        raise ConfigError(
            f"{split} cannot share trainer.batch_size={batch_size} windows evenly; make it a multiple of "
            f"{count * parts}, e.g. {count * parts * max(size, 1)}"
        )
    return size * parts


def step_seed(seed: int, step: int, stream: int = 0) -> int:
    """Return a seed for torch's generators, a pure function of run, step and stream."""
    return int(np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0] >> 1)


def _accelerator(config: TrainerConfig) -> Accelerator:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device=cuda, but torch finds no GPU; use trainer.device=cpu or auto")
    cuda = torch.cuda.is_available() and config.device != "cpu"
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and cuda and torch.cuda.is_bf16_supported()
    )
    # Accelerate remembers the first precision of a process; sweeps may ask for another.
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=not cuda, mixed_precision="bf16" if bf16 else "no")
