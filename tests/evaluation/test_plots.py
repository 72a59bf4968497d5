from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import matplotlib
import numpy as np
import pytest

from mode_policy.evaluation import (
    Evaluation,
    expert_usage,
    learning_curves,
    success_plot,
    svg,
)
from mode_policy.types import Task

METRICS: list[dict[str, Any]] = [
    {"step": 300, "loss": 0.3, "validation_loss": 0.35},
    {"step": 100, "loss": 0.5, "lr": 1e-3, "samples_per_second": 9000},
    {"step": 200, "loss": float("nan"), "seconds": 12.0},
    {"event": "resumed"},
    {"step": 300, "loss": 0.4, "validation_loss": None},
]


def probabilities(levels: int = 12, layers: int = 3, experts: int = 4) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(experts), size=(levels, layers))


def test_success_plot_shows_rates_and_wilson_whiskers(evaluation: Evaluation) -> None:
    axes = success_plot(evaluation).axes[0]
    results = [*evaluation.tasks, evaluation.overall]
    assert [label.get_text().replace("\n", "") for label in axes.get_yticklabels()] == [
        result.name for result in results
    ]
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    assert widths == [result.success for result in results]
    whiskers = [collection.get_segments()[0][:, 0] for collection in axes.collections]  # type: ignore[attr-defined]
    np.testing.assert_allclose(whiskers, [result.interval for result in results])


def test_long_names_are_wrapped_and_stay_inside_the_figure() -> None:
    name = "KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet_and_put_the_black_bowl_on_top_of_it"
    figure = success_plot(Evaluation.from_records([], [Task(name=name, instruction="")], {}))
    figure.draw_without_rendering()  # type: ignore[no-untyped-call]
    label = figure.axes[0].get_yticklabels()[0]
    assert label.get_text().replace("\n", "") == name
    assert max(map(len, label.get_text().split("\n"))) <= 28
    assert label.get_window_extent().x0 >= 0


def test_success_plot_without_episodes(evaluation: Evaluation) -> None:
    assert "<svg" in svg(success_plot(Evaluation.from_records([], [], {})), "nothing")


def test_learning_curves_take_what_is_there() -> None:
    figures = learning_curves(METRICS)
    assert list(figures) == ["Loss", "Learning rate", "Samples per second"]
    training, validation = figures["Loss"].axes[0].lines
    # Sorted by step, the last record of a step counts, and neither NaN nor null is drawn.
    np.testing.assert_array_equal(training.get_xydata(), [[100, 0.5], [300, 0.4]])
    np.testing.assert_array_equal(validation.get_xydata(), [[300, 0.35]])


@pytest.mark.parametrize("metrics", [[], [{}], [{"loss": 1.0}], [{"step": 1, "loss": float("inf")}]])
def test_no_data_gives_no_curves(metrics: list[dict[str, float]]) -> None:
    assert learning_curves(metrics) == {}


@pytest.mark.parametrize("count", [1, 2, 61, 5000])
def test_curves_of_any_length_stay_small(count: int) -> None:
    metrics = [{"step": i, "loss": 1 / (i + 1), "lr": 0.0, "load_balance": -1.0} for i in range(count)]
    for title, figure in learning_curves(metrics).items():
        assert len(svg(figure, title)) < 100_000


def test_expert_usage_has_a_heat_map_per_layer() -> None:
    probs, sigmas = probabilities(), np.geomspace(80, 0.002, 12)  # a sampler counts down
    figures = expert_usage(probs, sigmas, top_k=1)
    assert len(figures) == 3
    for layer, figure in enumerate(figures):
        axes = figure.axes[0]
        mesh, *lines = axes.collections
        np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(4, 12), probs[::-1, layer].T)
        used = [len(line.get_segments()) for line in lines]  # type: ignore[attr-defined]
        assert used == np.bincount(probs[:, layer].argmax(-1), minlength=4).tolist()
        # A log axis with evenly spaced levels has cells of equal width, centred on the levels.
        edges = np.log(mesh.get_coordinates()[0, :, 0])  # type: ignore[attr-defined]
        np.testing.assert_allclose((edges[1:] + edges[:-1]) / 2, np.log(sigmas[::-1]), atol=1e-9)
        assert axes.get_xlim()[0] > 80 > 0.002 > axes.get_xlim()[1]


@pytest.mark.parametrize("levels", [1, 2])
def test_expert_usage_of_few_noise_levels(levels: int) -> None:
    for figure in expert_usage(probabilities(levels), np.array([0.1, 1.0])[:levels]):
        assert "<svg" in svg(figure, "few")


def test_expert_usage_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(12, 3, 4\) and sigmas \(11,\)"):
        expert_usage(probabilities(), np.ones(11))
    with pytest.raises(ValueError, match="final 0"):
        expert_usage(probabilities(), np.arange(12))
    with pytest.raises(ValueError, match="1 probabilities are not finite"):
        expert_usage(np.array([[[0.5, np.nan]]]), np.ones(1))
    with pytest.raises(ValueError, match="top_k is 5, but there are 4 experts"):
        expert_usage(probabilities(), np.arange(1, 13), top_k=5)


def test_svg_is_valid_reproducible_and_leaves_no_trace(evaluation: Evaluation) -> None:
    before = dict(matplotlib.rcParams)
    text = svg(success_plot(evaluation), 'a "label" & <more>')
    assert dict(matplotlib.rcParams) == before
    assert text == svg(success_plot(evaluation), 'a "label" & <more>')
    root = ET.fromstring(text)
    assert root.get("aria-label") == 'a "label" & <more>'
    assert root.get("viewBox")
    assert root.get("width") is None
    assert "reach" in "".join(root.itertext())
