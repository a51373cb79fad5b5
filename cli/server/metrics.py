"""Metrics as Prometheus reads them: requests, tokens, times; and the history's own."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from continual.review.queue import CorrectionQueue
from continual.serving.desk import Desk
from continual.serving.facts import Facts
from store import StoreError

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """The metrics of one server."""

    def __init__(self, desk: Desk, facts: Facts, queue: CorrectionQueue) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "cedit_requests",
            "Requests by route and status.",
            ("route", "status"),
            registry=registry,
        )
        self.refused = Counter(
            "cedit_refused",
            "Requests that were refused before an endpoint read them, by reason.",
            ("reason",),
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "cedit_prompt_tokens", "Tokens of prompts that were answered.", registry=registry
        )
        self.generation_tokens = Counter(
            "cedit_generation_tokens", "Tokens of answers.", registry=registry
        )
        self.first_token = Histogram(
            "cedit_time_to_first_token_seconds",
            "From a request to the first piece of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.answer = Histogram(
            "cedit_answer_seconds",
            "From a request to the end of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.token = Histogram(
            "cedit_time_per_token_seconds",
            "Of an answer, per token behind the first.",
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        running = Gauge("cedit_requests_running", "Asks being answered.", registry=registry)
        running.set_function(lambda: desk.running)
        waiting = Gauge("cedit_requests_waiting", "Asks and edits in line.", registry=registry)
        waiting.set_function(lambda: desk.waiting)
        registry.register(HistoryMetrics(facts, queue))

    def page(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        page: bytes = generate_latest(self.registry)
        return page


class HistoryMetrics(Collector):
    """The metrics of a history at its head, read when they are asked for."""

    def __init__(self, facts: Facts, queue: CorrectionQueue) -> None:
        self._facts, self._queue = facts, queue

    def describe(self) -> Iterator[Metric]:
        """Describe nothing ahead: the history is read when it is scraped."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the present head; none of a store that cannot be read."""
        try:
            yield from self._read()
        except StoreError:
            return

    def _read(self) -> Iterator[Metric]:
        report = self._facts.report
        rates = GaugeMetricFamily("cedit_rate", "SR, GR, ER, … at head.", labels=["metric"])
        for name, value in report.rates.to_json().items():
            if value is not None:
                rates.add_metric([name], value)
        yield rates
        counts = GaugeMetricFamily(
            "cedit_history_corrections", "Corrections of the history by state.", labels=["state"]
        )
        for state, count in report.corrections.counts.items():
            counts.add_metric([state], count)
        yield counts
        queued = GaugeMetricFamily(
            "cedit_corrections", "Corrections of the queue by state.", labels=["state"]
        )
        for state, count in self._queue.counts().items():
            queued.add_metric([state], count)
        yield queued
        broken = len(report.corrections.broken)
        yield GaugeMetricFamily("cedit_broken", "Corrections that are broken now.", broken)
        yield GaugeMetricFamily("cedit_head", "Head's number in the journal.", report.title.seq)
        journal = self._facts.journal_bytes
        yield GaugeMetricFamily("cedit_journal_bytes", "The journal's size.", journal)
