"""Measurements of a server, for Prometheus."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from simple_multimodal.serving.models import ServedModel

PREFIX = "simple_multimodal"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """
    Counters and times of a server. Labels are templates of routes and names of models, never what a client sent.

    Args:
        models (`Callable`): Function that returns the models by name.
    """

    def __init__(self, models: Callable[[], Mapping[str, ServedModel]]):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{PREFIX}_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "Time from the header of a request to the end of its response.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            f"{PREFIX}_stage_seconds",
            "Time of a stage of a request, with waiting: receive, read or model.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.registry.register(_ModelCounters(models))

    def text(self) -> bytes:
        """Return all measurements in the text format of Prometheus."""
        return generate_latest(self.registry)


class _ModelCounters(Collector):
    """Counters of the queues of models, which are plain attributes; those of a reloaded model start again."""

    def __init__(self, models: Callable[[], Mapping[str, ServedModel]]):
        self.models = models

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        waiting = GaugeMetricFamily(f"{PREFIX}_waiting", "Clips or queries that wait.", labels=["model", "queue"])
        waiting_bytes = GaugeMetricFamily(f"{PREFIX}_waiting_bytes", "Memory of waiting clips.", labels=["model"])
        outcomes = CounterMetricFamily(
            f"{PREFIX}_queued", "Clips or queries by what became of them.", labels=["model", "queue", "outcome"]
        )
        batches = CounterMetricFamily(f"{PREFIX}_batches", "Batches by size.", labels=["model", "size"])
        clips = CounterMetricFamily(f"{PREFIX}_clips", "Clips by result of reading.", labels=["model", "result"])
        errors = CounterMetricFamily(f"{PREFIX}_model_errors", "Queries at which a model failed.", labels=["model"])
        for name, model in self.models().items():
            for queue, jobs in (("read", model.readers.waiting), ("model", model.batcher.waiting)):
                waiting.add_metric([name, queue], jobs.num_waiting)
                for outcome in ("accepted", "refused", "cancelled", "expired"):
                    outcomes.add_metric([name, queue, outcome], vars(jobs)[f"num_{outcome}"])
            waiting_bytes.add_metric([name], model.batcher.waiting.waiting_bytes)
            for size, number in sorted(model.batcher.batch_sizes.copy().items()):
                batches.add_metric([name, str(size)], number)
            for result in ("read", "unreadable", "lost"):
                clips.add_metric([name, result], vars(model.readers)[f"num_{result}"])
            errors.add_metric([name], model.batcher.num_errors)
        return [waiting, waiting_bytes, outcomes, batches, clips, errors]
