"""One scrape of all processes: what each tells, under one port, each series labelled with its process.

Nothing is added up here. A sum would fall where a process dies, and Prometheus would take the rest of it for news.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import grpc

from tandem.gateway.gateway_metrics import PROCESSES
from tandem.gateway.siblings.asking import Siblings
from tandem.gateway.siblings.place import LABEL
from tandem.rpc.metrics import Metrics

log = logging.getLogger(__name__)


class Scrape:
    """Answers scrapes for one process, or for all."""

    def __init__(self, metrics: Metrics, siblings: Siblings | None) -> None:
        """siblings: None where this process is the whole gateway."""
        self._metrics = metrics
        self._siblings = siblings

    def own(self) -> bytes:
        """What this process tells, for a sibling."""
        assert self._siblings is not None, "one process has nobody to tell"
        return self._metrics.render({LABEL: str(self._siblings.place.share.index)})

    async def render(self) -> bytes:
        """What all processes tell; those that do not answer in time are counted as silent."""
        if self._siblings is None:
            return _counted(1, 0) + self._metrics.render()
        others = self._siblings.place.others
        answers = await asyncio.gather(*(self._of(self._siblings, index) for index in others))
        told = [self.own(), *(answer for answer in answers if answer is not None)]
        return _counted(len(told), 1 + len(others) - len(told)) + merged(told)

    async def _of(self, siblings: Siblings, index: int) -> bytes | None:
        try:
            return await siblings.metrics(index)
        except grpc.aio.AioRpcError as error:
            log.warning("process %d does not tell its metrics: %s: %s", index, error.code().name, error.details())
            return None


def merged(texts: Iterable[bytes]) -> bytes:
    """Texts in Prometheus' format as one, in which the series of each metric stand together."""
    families: dict[str, list[str]] = {}
    for text in texts:
        series: list[str] = []
        for line in text.decode().splitlines(keepends=True):
            if line.startswith("# HELP "):
                series = families.setdefault(line, [])
            elif not line.startswith("# TYPE ") or not series:
                series.append(line)
    return "".join(head + "".join(series) for head, series in families.items()).encode()


def _counted(told: int, silent: int) -> bytes:
    head = f"# HELP {PROCESSES.exposed} {PROCESSES.meaning}\n# TYPE {PROCESSES.exposed} {PROCESSES.kind.value}\n"
    series = ((state, count) for state, count in (("told", told), ("silent", silent)))
    return (head + "".join(f'{PROCESSES.exposed}{{state="{state}"}} {count}\n' for state, count in series)).encode()
