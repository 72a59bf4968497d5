"""Metrics in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

LATENCY_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)


class Histogram:
    """Counts of values up to each bound."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name, self.text, self.bounds = name, text, tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[next((i for i, bound in enumerate(self.bounds) if value <= bound), -1)] += 1
        self.sum += value

    def lines(self) -> list[str]:
        """Return the histogram as Prometheus reads it: cumulative counts."""
        lines = [f"# HELP {self.name} {self.text}", f"# TYPE {self.name} histogram"]
        total = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            lines.append(f'{self.name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{self.name}_sum {self.sum}", f"{self.name}_count {total}"]


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        self.sessions = 0
        self.opened = 0
        self.requests = 0
        self.errors: Counter[str] = Counter()
        self.latency = Histogram("mode_request_seconds", "From a request to its answer.", LATENCY_BUCKETS)
        self.policy = Histogram("mode_policy_seconds", "Inference of one batch.", LATENCY_BUCKETS)
        self.batch = Histogram("mode_batch_size", "Requests answered together.", BATCH_BUCKETS)

    def text(self) -> str:
        """Return all of them in Prometheus' format."""
        lines = []
        for name, kind, text, value in (
            ("mode_sessions", "gauge", "Clients that are connected.", self.sessions),
            ("mode_sessions_total", "counter", "Clients that were connected.", self.opened),
            ("mode_requests_total", "counter", "Requests that were answered.", self.requests),
        ):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value}"]
        lines += ["# HELP mode_errors_total Requests that were refused.", "# TYPE mode_errors_total counter"]
        lines += [f'mode_errors_total{{reason="{k}"}} {v}' for k, v in sorted(self.errors.items())]
        for histogram in (self.latency, self.policy, self.batch):
            lines += histogram.lines()
        return "\n".join(lines) + "\n"
