"""Evaluation: records of episodes, honest intervals, videos, figures and a report. Needs no simulator."""

from mode_policy.evaluation.intervals import Interval, bootstrap_mean, wilson
from mode_policy.evaluation.plots import (
    ExpertUsage,
    expert_usage,
    learning_curves,
    success_plot,
    svg,
)
from mode_policy.evaluation.records import EpisodeRecord, ResultsError, TaskResult, coverage_score
from mode_policy.evaluation.report import Video, episode_videos, write_report
from mode_policy.evaluation.results import Evaluation
from mode_policy.evaluation.video import (
    VideoError,
    contact_sheet,
    mark_outcome,
    write_gif,
    write_video,
)

__all__ = [
    "EpisodeRecord",
    "Evaluation",
    "ExpertUsage",
    "Interval",
    "ResultsError",
    "TaskResult",
    "Video",
    "VideoError",
    "bootstrap_mean",
    "contact_sheet",
    "coverage_score",
    "episode_videos",
    "expert_usage",
    "learning_curves",
    "mark_outcome",
    "success_plot",
    "svg",
    "wilson",
    "write_gif",
    "write_report",
    "write_video",
]
