"""Which kube-proxy mode's program the kernel holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vipscope.dataplane.naming import KUBE_PROXY, KUBE_PROXY_TABLE
from vipscope.snapshot import Ipvs, Outcome, Record, Ruleset, Snapshot

# Where the traces of a mode can be, by collector.
_SOURCES: Mapping[str, tuple[str, ...]] = {
    "iptables": ("nftables", "xtables"),
    "nftables": ("nftables",),
    "ipvs": ("ipvs",),
}


def proxy_modes(snapshot: Snapshot, wanted: Collection[str]) -> dict[str, bool]:
    """Mode -> whether its program is there. A mode that cannot be known is left out.

    iptables: chains of Services in a nat table; nftables: the table kube-proxy; ipvs: virtual
    servers. `none` is known only when all three are.
    """
    modes: dict[str, bool] = {}
    for mode, sources in _SOURCES.items():
        answers = [_holds(mode, snapshot, name) for name in sources if name in wanted]
        if True in answers:
            modes[mode] = True
        elif None not in answers and len(answers) == len(sources):
            modes[mode] = False
    if any(modes.values()):
        modes["none"] = False
    elif len(modes) == len(_SOURCES):
        modes["none"] = True
    return modes


def _holds(mode: str, snapshot: Snapshot, name: str) -> bool | None:
    """Whether one collector's record shows the mode; None when it cannot tell."""
    reading = snapshot.readings.get(name)
    if reading is None:
        return None
    if reading.outcome is Outcome.ABSENT:
        return False
    return None if reading.record is None else _shows(mode, reading.record)


def _shows(mode: str, record: Record) -> bool:
    match record:
        case Ruleset() if mode == "iptables":
            return any(
                (table, owner, kind) == ("nat", KUBE_PROXY, "service") and count.chains > 0
                for (_, table, owner, kind), count in record.counts.items()
            )
        case Ruleset():
            return any(table == KUBE_PROXY_TABLE for _, table, _, _ in record.counts)
        case Ipvs():
            return any(record.virtual_servers.values())
        case _:
            return False
