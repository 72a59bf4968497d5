"""A sampler's table gives what the sampler gives."""

from __future__ import annotations

import pytest
import torch

from mode_policy.config import SamplerConfig
from mode_policy.diffusion.samplers import SAMPLERS
from mode_policy.diffusion.schedules import SCHEDULES, grid
from mode_policy.export.program import sampler_program

# Not ve with 2 steps: its last level is 1e-13, where dividing by it leaves no digit of a double.
GRIDS = [(s, n) for s in SCHEDULES for n in (1, 2, 6) if (s, n) != ("ve", 2)]


@pytest.mark.parametrize(("schedule", "steps"), GRIDS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_it_equals_the_sampler(name: str, schedule: str, steps: int) -> None:
    sampler = SamplerConfig(name=name, steps=steps, schedule=schedule)
    sigmas = grid(schedule, steps, sampler.sigma_min, sampler.sigma_max)
    program = sampler_program(sampler, sigmas)
    noise = torch.randn(program.noise_IN.shape[1], 5, dtype=torch.float64)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.tanh(x / (1 + sigma)) + sigma / (1 + sigma)  # as little linear as the network

    rest = iter(noise[1:])
    expected = SAMPLERS[name](denoise, sigmas[0] * noise[0], sigmas, lambda: next(rest))
    answers = torch.zeros(len(program.sigmas), 5, dtype=torch.float64)
    for i, sigma in enumerate(program.sigmas):
        answers[i] = denoise(program.noise_IN[i] @ noise + program.answers_II[i] @ answers, sigma)
    found = program.final_noise_N @ noise + program.final_answers_I @ answers
    # The same sums in another order; the start is 80 times the noise and more.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_no_call_is_shown_what_comes_later() -> None:
    for name in SAMPLERS:
        sampler = SamplerConfig(name=name, steps=4)
        program = sampler_program(sampler, grid("exponential", 4, 0.001, 80.0))
        assert torch.equal(program.answers_II, program.answers_II.tril(-1))


def test_ddim_ends_with_the_last_answer() -> None:
    program = sampler_program(SamplerConfig(steps=3), [4.0, 2.0, 1.0, 0.0])
    assert program.final_answers_I.tolist() == [0.0, 0.0, 1.0]
    assert program.final_noise_N.tolist() == [0.0]
