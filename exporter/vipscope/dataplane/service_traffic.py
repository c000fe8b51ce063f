"""Whose new connections the rules have counted, and how evenly they are spread over backends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from vipscope.dataplane.comparison import Comparison
from vipscope.dataplane.desired import PortKey
from vipscope.dataplane.top import HALF_LIFE, Top
from vipscope.dataplane.traffic import Chain, Traffic, imbalance

PortName = tuple[str, str, str]
"""Namespace, Service and port, of both families."""

REST: Final[PortName] = ("", "", "")


class ServiceTraffic:
    """New connections of the busiest Service ports, and of all others together."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._top: Top[PortName] = Top(most, (), REST, clock)
        self._clock = clock
        self._faded = clock()
        self._owners: dict[PortName, set[PortKey]] = {}
        """Of those that have a counter of their own."""
        self._chains: dict[Chain, PortKey] = {}
        """Those whose backends are watched."""
        self._backends: dict[Chain, Counter[str]] = {}
        """What each backend lately got, since all of them are there; halved every `HALF_LIFE`."""

    @property
    def connections(self) -> Mapping[PortName, int]:
        """Since the start; `REST` for all that have no counter of their own."""
        return self._top.counts

    @property
    def imbalance(self) -> Mapping[PortName, float]:
        """The busiest backend over the mean, of those ports where it can be told.

        Of several chains of a port (IPv4 and IPv6, policies Cluster and Local) the worst one's.
        """
        found: dict[PortName, float] = {}
        for chain, port in self._chains.items():
            ratio = imbalance(self._backends.get(chain, {}))
            if ratio is not None:
                found[port[:3]] = max(ratio, found.get(port[:3], 0.0))
        return found

    def take(self, comparison: Comparison, traffic: Traffic) -> None:
        """Take what was counted since the last time, and say whose backends to watch."""
        if self._clock() - self._faded >= HALF_LIFE:
            self._fade()
        connections, backends = traffic.take()
        for (family, destination), number in connections.items():
            port = comparison.owner(family, destination)
            self._top.add(port[:3] if port else REST, number)
            if port:
                self._owners.setdefault(port[:3], set()).add(port)
        for chain, counts in backends.items():
            # Only what they got while all of them were there compares them.
            if self._backends.get(chain, {}).keys() != counts.keys():
                self._backends[chain] = Counter()
            self._backends[chain].update(counts)
        self._watch(comparison)
        traffic.watched = frozenset(self._chains)

    def _watch(self, comparison: Comparison) -> None:
        """Watch the chains of those that have a counter of their own."""
        shown = self._top.counts.keys()
        self._owners = {name: ports for name, ports in self._owners.items() if name in shown}
        self._chains = {
            (port.family, chain): port
            for ports in self._owners.values()
            for port in ports
            for chain in comparison.chains(port)
        }
        self._backends = {
            chain: counts for chain, counts in self._backends.items() if chain in self._chains
        }

    def _fade(self) -> None:
        self._faded = self._clock()
        self._backends = {
            chain: Counter({backend: number // 2 for backend, number in counts.items()})
            for chain, counts in self._backends.items()
        }
