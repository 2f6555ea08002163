"""Prometheus metrics of one process: what there is, and how it is told."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

import prometheus_client as prometheus
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `Metrics.render` returns."""


class Kind(Enum):
    """What a metric does."""

    COUNTER = "counter"
    """Only rises, from 0 at the start of its process."""
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name, labels and meaning."""

    name: str
    """With its unit; a counter's without the `_total` that Prometheus adds."""
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def exposed(self) -> str:
        """The name under which it is queried; a histogram's with _bucket, _sum or _count behind it."""
        return f"{self.name}_total" if self.kind is Kind.COUNTER else self.name


@dataclass(frozen=True, slots=True)
class Distribution:
    """Value of a histogram."""

    bounds: Sequence[float]
    """Upper bounds of its buckets, rising."""
    counts: Sequence[int]
    """Per bucket, not added up; the last one is of what is over every bound."""
    sum: float


@dataclass(frozen=True, slots=True)
class Sample:
    """What one series is at this moment."""

    family: Family
    value: float | Distribution
    labels: tuple[str, ...] = ()
    """Values, in the order of the family's labels."""


Read: TypeAlias = Callable[[], Iterable[Sample]]
"""Called for each scrape; quick, and does not raise."""


class Tally:
    """A histogram that one thread counts in."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Tallies:
    """One per combination of labels."""

    def __init__(self, family: Family, bounds: Sequence[float]) -> None:
        self.family = family
        self._bounds = bounds
        self._tallies: dict[tuple[str, ...], Tally] = {}

    def labels(self, *values: str) -> Tally:
        """That of these values of the labels."""
        return self._tallies.setdefault(values, Tally(self._bounds))

    def samples(self) -> Iterator[Sample]:
        """What all of them are now."""
        for values, tally in self._tallies.items():
            yield Sample(self.family, Distribution(tally.bounds, list(tally.counts), tally.sum), values)


class Count:
    """A counter that one thread counts in."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int) -> None:
        """Counts so many."""
        self.value += by


class Counts:
    """One per combination of labels."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._counts: dict[tuple[str, ...], Count] = {}

    def labels(self, *values: str) -> Count:
        """That of these values of the labels."""
        return self._counts.setdefault(values, Count())

    def total(self, label: str, wanted: str) -> float:
        """The sum of those whose label has this value."""
        place = self.family.labels.index(label)
        return sum(count.value for values, count in self._counts.items() if values[place] == wanted)

    def samples(self) -> Iterator[Sample]:
        """What all of them are now."""
        for values, count in self._counts.items():
            yield Sample(self.family, count.value, values)


class Metrics:
    """A registry of its own, so that two services in one process (tests) do not share counters."""

    def __init__(self) -> None:
        # When each series began is of no use to anybody, and as many series again.
        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = prometheus.CollectorRegistry()
        self.families: list[Family] = []
        """Everything that there is, in the order in which it was made."""
        self._rpc_calls = self.counter(
            "tandem_rpc_calls", "RPCs served, by method and status code.", ("method", "code")
        )

    def counter(self, name: str, meaning: str, labels: Sequence[str] = ()) -> prometheus.Counter:
        """A count that only rises; Prometheus adds `_total` to its name."""
        self.families.append(Family(name, Kind.COUNTER, meaning, tuple(labels)))
        return prometheus.Counter(name, meaning, labels, registry=self.registry)

    def gauge(self, name: str, meaning: str, labels: Sequence[str] = ()) -> prometheus.Gauge:
        """A value that rises and falls."""
        self.families.append(Family(name, Kind.GAUGE, meaning, tuple(labels)))
        return prometheus.Gauge(name, meaning, labels, registry=self.registry)

    def histogram(
        self, name: str, meaning: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> prometheus.Histogram:
        """A distribution; `buckets` are upper bounds in the unit that the name says."""
        self.families.append(Family(name, Kind.HISTOGRAM, meaning, tuple(labels)))
        return prometheus.Histogram(name, meaning, labels, buckets=buckets, registry=self.registry)

    def tally(self, name: str, meaning: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Tallies:
        """As `histogram`, for what is counted so often that it has to be cheap; on one thread only."""
        tallies = Tallies(Family(name, Kind.HISTOGRAM, meaning, tuple(labels)), buckets)
        self.read((tallies.family,), tallies.samples)
        return tallies

    def counts(self, name: str, meaning: str, labels: Sequence[str] = ()) -> Counts:
        """As `counter`, for what is counted so often that it has to be cheap; on one thread only."""
        counts = Counts(Family(name, Kind.COUNTER, meaning, tuple(labels)))
        self.read((counts.family,), counts.samples)
        return counts

    def read(self, families: Sequence[Family], read: Read) -> Reading:
        """Metrics whose values are kept elsewhere, and read when somebody scrapes."""
        self.families += families
        reading = Reading(families, read)
        self.registry.register(reading)
        return reading

    def unread(self, reading: Reading) -> None:
        """These are not shown any more."""
        self.registry.unregister(reading)
        for family in reading.families:
            self.families.remove(family)

    def count_rpc(self, method: str, code: str) -> None:
        """Hook for tandem.rpc.server.GrpcServer: one RPC ended with this status code."""
        self._rpc_calls.labels(method, code).inc()

    def render(self, labels: Mapping[str, str] | None = None) -> bytes:
        """Everything in Prometheus' text format. labels: that each series has besides its own."""
        return prometheus.generate_latest(_Labelled(self.registry, labels) if labels else self.registry)


class _Labelled(prometheus.CollectorRegistry):
    """Another registry, with labels added to each series."""

    def __init__(self, registry: prometheus.CollectorRegistry, labels: Mapping[str, str]) -> None:
        super().__init__()
        self._from = registry
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        """Every family with its series."""
        for metric in self._from.collect():
            metric.samples = [one._replace(labels={**one.labels, **self._labels}) for one in metric.samples]
            yield metric


class Reading(prometheus.registry.Collector):
    """Samples that others keep, as Prometheus' client wants them."""

    def __init__(self, families: Sequence[Family], read: Read) -> None:
        self.families = families
        self._read = read

    def describe(self) -> Iterator[Metric]:
        """Every family, so that two of one name are refused."""
        return iter([_empty(family) for family in self.families])

    def collect(self) -> Iterator[Metric]:
        """Every family with its series."""
        found = {family.name: _empty(family) for family in self.families}
        for sample in self._read():
            _add(found[sample.family.name], sample)
        return iter(found.values())


def _empty(family: Family) -> Metric:
    kinds = {Kind.COUNTER: CounterMetricFamily, Kind.GAUGE: GaugeMetricFamily, Kind.HISTOGRAM: HistogramMetricFamily}
    made: Metric = kinds[family.kind](family.name, family.meaning, labels=family.labels)
    return made


def _add(metric: Metric, sample: Sample) -> None:
    value = sample.value
    if isinstance(metric, HistogramMetricFamily) and isinstance(value, Distribution):
        risen, buckets = 0, []
        for bound, count in zip([*(str(float(bound)) for bound in value.bounds), "+Inf"], value.counts, strict=True):
            risen += count
            buckets.append((bound, risen))
        metric.add_metric(sample.labels, buckets, value.sum)
    elif isinstance(metric, CounterMetricFamily | GaugeMetricFamily) and not isinstance(value, Distribution):
        metric.add_metric(sample.labels, value)
    else:
        raise TypeError(f"{sample.family.name} can't be {value!r}")
