"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """Counters of one server, in a registry of their own.

    Args:
        waiting: how many rows and texts are accepted and not yet answered.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "varlora_requests", "Requests by endpoint and status.", ["endpoint", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "varlora_request_seconds",
            "Seconds from a request's first byte to its answer's last.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        queue = Gauge(
            "varlora_queue_length", "Rows and texts that are accepted and not yet answered.", registry=self.registry
        )
        queue.set_function(waiting)
        self.batch_rows = Histogram(
            "varlora_batch_rows",
            "Rows (or texts) that were computed together.",
            ["kind"],
            buckets=_ROWS,
            registry=self.registry,
        )
        self.rows = Counter(
            "varlora_rows",
            "Classified rows: answered, abstained, or undecided where the folder holds no decision.",
            ["model", "outcome"],
            registry=self.registry,
        )
        self.abstained_share = Gauge(
            "varlora_abstained_share",
            "Share of the rows with a decision that were not answered, since the start.",
            ["model"],
            registry=self.registry,
        )
        self.tokens = Counter("varlora_tokens", "Tokens that were written.", ["model"], registry=self.registry)
        self._decided: dict[str, list[int]] = {}

    def count_row(self, model: str, answered: bool | None) -> None:
        """Counts a classified row."""
        outcome = "undecided" if answered is None else "answered" if answered else "abstained"
        self.rows.labels(model, outcome).inc()
        if answered is not None:
            decided = self._decided.setdefault(model, [0, 0])
            decided[0] += not answered
            decided[1] += 1
            self.abstained_share.labels(model).set(decided[0] / decided[1])

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)
