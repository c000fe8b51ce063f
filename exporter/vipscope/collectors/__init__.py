"""One file per subsystem, and the explicit tuple of all of them."""

from __future__ import annotations

from vipscope.collectors.base import Collector
from vipscope.collectors.cluster import ClusterCollector
from vipscope.collectors.conntrack import ConntrackCollector
from vipscope.collectors.drift import DriftCollector
from vipscope.collectors.ipvs import IpvsCollector
from vipscope.collectors.kubeproxy import KubeProxyCollector
from vipscope.collectors.nftables import Nftables
from vipscope.collectors.pressure import PressureCollector
from vipscope.collectors.probe import ProbeCollector
from vipscope.collectors.xtables import Xtables

ALL: tuple[type[Collector], ...] = (
    Nftables,
    Xtables,
    IpvsCollector,
    ConntrackCollector,
    PressureCollector,
    KubeProxyCollector,
    DriftCollector,
    ProbeCollector,
    ClusterCollector,
)
"""Every collector, in the order of settings.COLLECTORS. Imported all at once: together they take
2 MiB, of 40 for the whole process."""
