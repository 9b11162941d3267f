"""What Prometheus reads from /metrics. A registry of its own for each app, so that two in a process don't meet."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Meters:
    """Counters and histograms of one app."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("puma_requests", "Requests answered", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "puma_request_seconds", "Time to answer", ("route",), buckets=SECONDS, registry=registry
        )
        self.batches = Histogram(
            "puma_batch_size", "Items answered together", ("work",), buckets=SIZES, registry=registry
        )
        self.waiting = Gauge("puma_waiting", "Items that wait for a batch", ("work",), registry=registry)
        self.refused = Counter("puma_refused", "Requests refused because the server was full", registry=registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts one request."""
        self.requests.labels(route, status).inc()
        self.seconds.labels(route).observe(seconds)
        if status == 503:
            self.refused.inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
