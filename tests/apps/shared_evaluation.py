"""Two evaluations of an ignorant policy, by as many processes as were launched; see test_shared_rollouts."""

import sys
from pathlib import Path

import torch

from mode_policy.apps.config import EvaluationConfig
from mode_policy.apps.shared_rollouts import evaluate_together
from mode_policy.training.processes import Processes
from tests.apps.test_rollouts import REACH, ignorant
from tests.training.runs import config

#: Folder → starts of the task; the second has fewer than there are processes.
EPISODES = {"five": 5, "one": 1}


def main(folder: str) -> None:
    processes = Processes(config())
    torch.manual_seed(0)  # the same policy in every process
    policy = ignorant("reach-v3", -1, 1)
    for name, episodes in EPISODES.items():
        evaluation = evaluate_together(
            processes,
            policy,
            [REACH],
            # The size of a batch decides how the policy's products are rounded: one episode at a time.
            EvaluationConfig(episodes=episodes, lanes=1, workers=0, videos=0, video_size=32),
            Path(folder) / name,
            demonstrated=(),
            settings={"task": "test"},
            configuration={},
            metrics=(),
            training_summary={"steps": 0},
        )
        assert (evaluation is not None) == processes.main
    processes.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
