"""For every alert what makes it fire, and what comes near but must not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from alerts.latency import P99, REQUESTS
from tests.rules.promtool import (
    SCRAPED,
    Expected,
    Situation,
    growing,
    growing_for,
    one,
    points,
    steady,
)
from vipscope import metrics as m

HERE = SCRAPED
CLUSTER = {"cluster": "c1"}
UP = 'up{job="vipscope",cluster="c1",node="n1"}'
OTHER_UP = 'up{job="other",cluster="c1",node="%s"}'
CLUSTER_UP = 'up{job="vipscope",cluster="c1",instance="%s"}'


def since(minute: int, per_minute: float) -> str:
    """A counter that grows from that minute on."""
    return f"0x{minute - 1} {growing(per_minute, per_minute)}"


# --- the exporter ---------------------------------------------------------------------------------

EXPORTER = [
    Situation(
        "the exporter has been down for two minutes",
        "VipscopeExporterDown",
        {UP: "1 1 0+0x10"},
        [
            Expected(
                "critical", "exporter", HERE,
                "vipscope on n1 cannot be scraped.",
                "Nothing is known of the Services on n1: its exporter is down, or the node is.",
            )
        ],
        minutes=4,
    ),
    Situation(
        "the exporter came back in time", "VipscopeExporterDown", {UP: "1 1 0 0 1+0x10"}, minutes=5
    ),
    Situation(
        "role cluster, which has no node, cannot be scraped, and another job of the node",
        "VipscopeExporterDown",
        {UP: steady(1), CLUSTER_UP % "a": steady(0), OTHER_UP % "n1": steady(0)},
        minutes=4,
    ),
    Situation(
        "neither replica of role cluster can be scraped",
        "VipscopeClusterExporterDown",
        {
            UP: steady(1), CLUSTER_UP % "a": "1 1 0x9", CLUSTER_UP % "b": steady(0),
            OTHER_UP % "": steady(1),
        },
        [
            Expected(
                "warning", "cluster_exporter", CLUSTER,
                "vipscope's role cluster cannot be scraped.",
                "No exporter of role cluster answers: whether Services route to nobody and how much"
                " endpoints change is not known.",
            )
        ],
        minutes=4,
    ),
    Situation(
        "one of them can, and the exporter of a node cannot",
        "VipscopeClusterExporterDown",
        {
            UP: steady(0), CLUSTER_UP % "a": steady(1), CLUSTER_UP % "b": steady(0),
            OTHER_UP % "": steady(0),
        },
        minutes=4,
    ),
    Situation(
        "nothing is scraped",
        "VipscopeExporterAbsent",
        {'up{job="node"}': steady(1)},
        [
            Expected(
                "critical", "absent", {"job": "vipscope"},
                "Prometheus scrapes no vipscope.",
                "There is no target of job vipscope: no alert of vipscope can fire.",
            )
        ],
        minutes=5,
    ),
    Situation("an exporter is down but scraped", "VipscopeExporterAbsent", {UP: steady(0)}),
    Situation(
        "a collector has failed for ten minutes",
        "VipscopeCollectorFailing",
        {
            one(m.COLLECTOR_STATE, collector="ipvs", state=state): steady(1)
            for state in ("denied", "failed", "timeout")
        },
        [
            Expected(
                "warning", "collector", {**HERE, "collector": "ipvs", "state": state},
                f"Collector ipvs on n1: {state}.",
                f"The reads of collector ipvs on n1 end as {state}. Its series are withheld.",
            )
            for state in ("denied", "failed", "timeout")
        ],
        minutes=10,
    ),
    Situation(
        "role cluster's collector has failed for ten minutes, and it has no node",
        "VipscopeCollectorFailing",
        {one(m.COLLECTOR_STATE, node="", collector="cluster", state="failed"): steady(1)},
        [
            Expected(
                "warning", "collector", {**CLUSTER, "collector": "cluster", "state": "failed"},
                "Collector cluster of role cluster: failed.",
                "The reads of collector cluster of role cluster end as failed. Its series are"
                " withheld.",
            )
        ],
        minutes=10,
    ),
    Situation(
        "a collector has nothing to read, and another failed once",
        "VipscopeCollectorFailing",
        {
            one(m.COLLECTOR_STATE, collector="ipvs", state="absent"): steady(1),
            one(m.COLLECTOR_STATE, collector="nftables", state="failed"): "1x8 0x9",
        },
        minutes=11,
    ),
    Situation(
        "the ruleset was counted six minutes ago",
        "VipscopeSnapshotOld",
        {one(m.SNAPSHOT_AGE, backend="nft"): steady(360)},
        [
            Expected(
                "warning", "collector", {**HERE, "backend": "nft"},
                "The ruleset of n1 was counted long ago.",
                "What is exported of backend nft on n1 is 6m 0s old.",
            )
        ],
        minutes=5,
    ),
    Situation(
        "the ruleset is always five minutes old",
        "VipscopeSnapshotOld",
        {one(m.SNAPSHOT_AGE, backend="nft"): steady(300)},
    ),
]  # fmt: skip

# --- rules ----------------------------------------------------------------------------------------

RULES = one(m.RULES, owner="kube-proxy", table="nat", **{"class": "services"})
IPTABLES = one(m.PROXY_MODE, mode="iptables")
NODE_P99 = one(P99["node"], latency_source="probe")
NODE_REQUESTS = one(REQUESTS["node"], latency_source="probe")


def grown(rules_per_minute: float, seconds_per_minute: float) -> dict[str, str]:
    """Rules and p99 that grow together, from 10,000 rules and 10 ms."""
    return {
        NODE_REQUESTS: steady(100),
        RULES: growing(rules_per_minute, 10_000),
        NODE_P99: growing(seconds_per_minute, 0.00999947),
    }


def wavering(seconds_per_minute: float, by: float) -> dict[str, str]:
    """The same, but p99 is above its line in one minute and below in the next."""
    wave = (0.01 + seconds_per_minute * i + by * (-1) ** i for i in range(100))
    return grown(10, 0) | {NODE_P99: points(wave)}


TOO_SLOW = Expected(
    "warning", "rule_traversal", {**HERE, "latency_source": "probe"},
    "Connections from n1 are slow for the number of rules.",
    "On n1 p99 and the number of rules go together, and walking the rules costs a first packet"
    " 12.5% of the p99 of probe.",
)  # fmt: skip
SLOWER = replace(TOO_SLOW, description=TOO_SLOW.description.replace("12.5%", "11.56%"))


def breaks(within: str) -> Expected:
    return Expected(
        "warning", "rules", {**HERE, "latency_source": "probe"},
        "Rule growth on n1 will break the latency objective.",
        "At the present growth of the rules on n1, and with the latency that goes with them"
        f" (probe), p99 reaches 50 ms in {within}.",
    )  # fmt: skip


GROWTH = [
    Situation(
        # p99 after 80 minutes: 10.8 ms. The rest, 39.2 ms, at 0.01 ms a minute: 65 h 20 min.
        "at this growth the objective breaks within three days",
        "VipscopeRuleGrowthWillBreakSLO",
        grown(10, 0.00001),
        [breaks("2d 17h 20m 3s")],
        minutes=80,
        before=None,
    ),
    Situation(
        "at this growth it breaks in three days and a half",
        "VipscopeRuleGrowthWillBreakSLO",
        grown(10, 0.0000078),
        minutes=80,
    ),
    Situation(
        "they grow together, but with the load",
        "VipscopeRuleGrowthWillBreakSLO",
        grown(10, 0.00001) | {
            NODE_REQUESTS: points(100 + i + i % 3 for i in range(100)),
            NODE_P99: points(0.010 + 0.00001 * (i + i % 3) for i in range(100)),
        },
        minutes=80,
    ),
    Situation(
        "rules grow, and latency moves, but not with them",
        "VipscopeRuleGrowthWillBreakSLO",
        {
            NODE_REQUESTS: steady(100),
            RULES: growing(10, 10_000),
            NODE_P99: points(0.010 + 0.00001 * i + 0.004 * (i % 2) for i in range(100)),
        },
        minutes=80,
    ),
    Situation(
        # After 80 minutes Pearson's r is 0.23 ms / sqrt(0.23^2 + 0.26^2) ms = 0.66.
        "rules grow, and latency goes with them, but not strongly",
        "VipscopeRuleGrowthWillBreakSLO",
        wavering(0.00001, 0.00026),
        minutes=80,
    ),
    Situation(
        # r is 0.87 by then, and half an hour ago it was 0.74.
        "latency goes with them strongly",
        "VipscopeRuleGrowthWillBreakSLO",
        wavering(0.00001, 0.00013),
        [breaks("2d 17h 6m 59s")],
        minutes=80,
        before=None,
    ),
    Situation(
        "it does, but it has done so for less than half an hour",
        "VipscopeRuleGrowthWillBreakSLO",
        wavering(0.00001, 0.00013),
        minutes=70,
    ),
    Situation(
        "a node in mode iptables has 50,001 rules",
        "VipscopeTooManyRules",
        {RULES: steady(50_001), IPTABLES: steady(1)},
        [
            Expected(
                "warning", "rules", HERE,
                "kube-proxy holds very many rules on n1.",
                "kube-proxy on n1 is in mode iptables with 50k rules, more than 50000. Each sync"
                " writes many of them, and each new connection walks half of the Services.",
            )
        ],
        minutes=10,
    ),
    Situation(
        "it has 50,000", "VipscopeTooManyRules", {RULES: steady(50_000), IPTABLES: steady(1)},
        minutes=12,
    ),
    Situation(
        "it has more, but they are another's",
        "VipscopeTooManyRules",
        {one(m.RULES, owner="calico", table="nat"): steady(60_000), IPTABLES: steady(1)},
        minutes=12,
    ),
    Situation(
        "it has more, but is in mode nftables",
        "VipscopeTooManyRules",
        {RULES: steady(60_000), IPTABLES: steady(0), one(m.PROXY_MODE, mode="nftables"): steady(1)},
        minutes=12,
    ),
    Situation(
        # p99 after 60 minutes: 16 ms.
        "rules and latency go together, and the rules cost an eighth of it",
        "VipscopeRulesSlowConnections",
        grown(10, 0.0001) | {one(m.FIRST_PACKET_COST, kind="modelled"): steady(0.002)},
        [TOO_SLOW],
        minutes=60,
        before=None,
    ),
    Situation(
        # After 60 minutes Pearson's r is 1.73 ms / sqrt(1.73^2 + 2^2) ms = 0.65.
        "they go together, but not strongly",
        "VipscopeRulesSlowConnections",
        wavering(0.0001, 0.002) | {one(m.FIRST_PACKET_COST, kind="modelled"): steady(0.002)},
        minutes=60,
    ),
    Situation(
        # r is 0.80 by then, and ten minutes ago it was 0.74.
        "they go together strongly",
        "VipscopeRulesSlowConnections",
        wavering(0.0001, 0.0013) | {one(m.FIRST_PACKET_COST, kind="modelled"): steady(0.002)},
        [SLOWER],
        minutes=60,
        before=None,
    ),
    Situation(
        "they do, but have done so for less than ten minutes",
        "VipscopeRulesSlowConnections",
        wavering(0.0001, 0.0013) | {one(m.FIRST_PACKET_COST, kind="modelled"): steady(0.002)},
        minutes=51,
    ),
    Situation(
        "they go together, but the rules cost next to nothing",
        "VipscopeRulesSlowConnections",
        grown(10, 0.0001) | {one(m.FIRST_PACKET_COST, kind="modelled"): steady(0.0015)},
        minutes=60,
    ),
    Situation(
        "the rules cost an eighth of the latency, but it does not move with them",
        "VipscopeRulesSlowConnections",
        grown(0, 0.0001) | {one(m.FIRST_PACKET_COST, kind="modelled"): steady(0.002)},
        minutes=60,
    ),
    Situation(
        "a node holds the rules of all three modes",
        "VipscopeModeLeftovers",
        {
            one(m.PROXY_MODE, mode=mode): steady(1) for mode in ("iptables", "ipvs", "nftables")
        },
        [
            Expected(
                "warning", "leftovers", HERE,
                "n1 holds the rules of more than one kube-proxy mode.",
                "n1 holds the programs of 3 modes of kube-proxy. What kube-proxy no longer"
                " updates may take packets again as soon as something makes its chain anew.",
            )
        ],
        minutes=15,
    ),
    Situation(
        "a node is on its way from one mode to another",
        "VipscopeModeLeftovers",
        {IPTABLES: "1x13 0x9", one(m.PROXY_MODE, mode="nftables"): steady(1)},
        minutes=16,
    ),
]  # fmt: skip

# --- drift ----------------------------------------------------------------------------------------


def drift(severity: str, kind: str, what: str, age: str) -> Expected:
    return Expected(
        severity, "drift", {**HERE, "kind": kind},
        f"The kernel of n1 differs from the API: {kind} {what}.",
        f"1 {what} on n1 are {kind} in the kernel, and have been for more than {age}.",
    )  # fmt: skip


MISSING = one(m.DRIFT_SERVICES, kind="missing")
ORPHANED = one(m.DRIFT_SERVICES, kind="orphaned")
STALE = one(m.DRIFT_ENDPOINTS, kind="stale")
OLDEST = one(m.DRIFT_OLDEST)

DRIFT = [
    Situation(
        "Service ports have been missing for a minute and more",
        "VipscopeServiceDrift",
        {MISSING: steady(1), OLDEST: growing(60, 1)},
        [drift("warning", "missing", "Service ports", "1m")],
        minutes=2,
    ),
    Situation(
        "Service ports are missing for under a minute each",
        "VipscopeServiceDrift",
        {MISSING: steady(1), OLDEST: steady(60)},
    ),
    Situation(
        "Service ports have been missing for more than ten minutes",
        "VipscopeServiceDrift",
        {MISSING: steady(1), OLDEST: growing(60, 1)},
        [drift(each, "missing", "Service ports", age) for each, age in
         (("critical", "10m"), ("warning", "1m"))],
        minutes=11,
        before=[drift("warning", "missing", "Service ports", "1m")],
    ),
    Situation(
        "Service ports are missing for ten minutes at most",
        "VipscopeServiceDrift",
        {MISSING: steady(1), OLDEST: steady(600)},
        [drift("warning", "missing", "Service ports", "1m")],
        before=None,
    ),
    Situation(
        "orphaned Service ports harm nobody at once",
        "VipscopeServiceDrift",
        {MISSING: steady(0), ORPHANED: steady(1), OLDEST: growing(60, 1)},
        [drift("warning", "orphaned", "Service ports", "1m")],
        minutes=12,
        before=None,
    ),
    Situation(
        "stale endpoints are programmed for more than a minute",
        "VipscopeEndpointDrift",
        {STALE: steady(1), OLDEST: growing(60, 1)},
        [drift("warning", "stale", "endpoints", "1m")],
        minutes=2,
    ),
    Situation(
        "endpoints are stale, but others were first",
        "VipscopeEndpointDrift",
        {STALE: "0 0 0 0 1x9", OLDEST: growing(60, 1)},
        minutes=4,
    ),
    Situation(
        "stale endpoints are programmed for more than ten minutes",
        "VipscopeEndpointDrift",
        {STALE: steady(1), OLDEST: growing(60, 1)},
        [drift(each, "stale", "endpoints", age) for each, age in
         (("critical", "10m"), ("warning", "1m"))],
        minutes=11,
        before=[drift("warning", "stale", "endpoints", "1m")],
    ),
    Situation(
        "endpoints are stale for under a minute each",
        "VipscopeEndpointDrift",
        {STALE: steady(1), OLDEST: steady(60)},
    ),
    Situation(
        "they are stale for ten minutes at most",
        "VipscopeEndpointDrift",
        {STALE: steady(1), OLDEST: steady(600)},
        [drift("warning", "stale", "endpoints", "1m")],
        before=None,
    ),
    Situation(
        "missing endpoints only take capacity away",
        "VipscopeEndpointDrift",
        {
            STALE: steady(0),
            one(m.DRIFT_ENDPOINTS, kind="missing"): steady(1),
            OLDEST: growing(60, 1),
        },
        [drift("warning", "missing", "endpoints", "1m")],
        minutes=12,
        before=None,
    ),
]  # fmt: skip

FAULT = one(m.DRIFT_FAULT, fault="prerouting")

DRIFT += [
    Situation(
        "something cuts all Services off",
        "VipscopeServicesCutOff",
        {FAULT: steady(1)},
        [
            Expected(
                "critical", "cut_off", {**HERE, "fault": "prerouting"},
                "Services are cut off on n1: prerouting.",
                "What leads packets to the Services' rules is missing on n1: prerouting.",
            )
        ],
        minutes=1,
    ),
    Situation(
        "a firewall is reloaded", "VipscopeServicesCutOff", {FAULT: "0 0 1 0x9"}, minutes=3
    ),
]  # fmt: skip

# --- kube-proxy and who else writes ---------------------------------------------------------------


def pending(severity: str, doing: str, age: str) -> Expected:
    return Expected(
        severity, "kube_proxy", HERE,
        f"kube-proxy on n1 {doing}.",
        f"kube-proxy on n1 has had a change queued for {age} without writing it to the kernel.",
    )  # fmt: skip


def contention(severity: str, share: str) -> Expected:
    return Expected(
        severity, "xtables_lock", HERE,
        "The xtables lock on n1 is hardly ever free.",
        f"/run/xtables.lock on n1 was held for {share} of the last 5m: kube-proxy and the CNI wait"
        " for it.",
    )  # fmt: skip


PENDING = one(m.KUBE_PROXY_SYNC_PENDING)
FAILURES = one(m.KUBE_PROXY_RESTORE_FAILURES)
LOCK = one(m.LOCK_HELD)


def writes(process: str) -> str:
    return one(m.TRANSACTIONS, process=process)


KUBE_PROXY = [
    Situation(
        "kube-proxy has not been healthy for two minutes",
        "VipscopeKubeProxyDown",
        {one(m.KUBE_PROXY_UP): "1 1 0x9"},
        [
            Expected(
                "critical", "kube_proxy", HERE,
                "kube-proxy on n1 is not healthy.",
                "kube-proxy on n1 does not answer, or says that it is unhealthy: the kernel keeps"
                " the Services as they were.",
            )
        ],
        minutes=4,
    ),
    Situation(
        "kube-proxy restarts",
        "VipscopeKubeProxyDown",
        {one(m.KUBE_PROXY_UP): "1 1 0 0 1x9"},
        minutes=4,
    ),
    Situation(
        "a sync is pending for half a minute and more, time and again",
        "VipscopeSyncPending",
        {PENDING: steady(31)},
        [pending("warning", "is behind", "31s")],
        minutes=1,
    ),
    Situation("a sync takes half a minute", "VipscopeSyncPending", {PENDING: steady(30)}),
    Situation(
        "a sync hangs",
        "VipscopeSyncPending",
        {PENDING: steady(301)},
        [pending("critical", "hangs", "5m 1s"), pending("warning", "is behind", "5m 1s")],
        minutes=1,
    ),
    Situation(
        "a sync takes five minutes",
        "VipscopeSyncPending",
        {PENDING: steady(300)},
        [pending("warning", "is behind", "5m 0s")],
        before=None,
    ),
    Situation(
        "three writes failed within a quarter of an hour",
        "VipscopeRestoreFailing",
        {FAILURES: growing(0.2)},
        [
            Expected(
                "critical", "restore", HERE,
                "The kernel of n1 refuses kube-proxy's rules.",
                "kube-proxy on n1 failed to write its rules 3 times within 15m.",
            )
        ],
        minutes=15,
    ),
    Situation(
        "two writes failed", "VipscopeRestoreFailing", {FAILURES: growing(2 / 15)}, minutes=30
    ),
    Situation(
        "kube-proxy and Calico write all the time",
        "VipscopeSeveralWriters",
        {
            writes("iptables-restor"): since(11, 20), writes("ip6tables-resto"): since(11, 20),
            writes("calico-node"): since(11, 40),
        },
        [
            Expected(
                "warning", "writers", HERE,
                "2 programs rewrite the ruleset of n1 all the time.",
                "2 programs on n1 each commit more than 0.5 transactions per second to nf_tables,"
                " and undo or delay each other's.",
            )
        ],
        minutes=24,
    ),
    Situation(
        "kube-proxy writes IPv4 and IPv6",
        "VipscopeSeveralWriters",
        {writes("iptables-restor"): growing(60), writes("ip6tables-resto"): growing(60)},
        minutes=16,
    ),
    Situation(
        "another writes now and then",
        "VipscopeSeveralWriters",
        {writes("iptables-restor"): growing(60), writes("nft"): growing(30)},
        minutes=16,
    ),
    Situation(
        # Of the six reads in 5 minutes four are more than half: so it is from minute 14 on.
        "the lock has been held for most of the time for two minutes",
        "VipscopeXtablesLockContention",
        {LOCK: "0x10 1x19"},
        [contention("warning", "100%")],
        minutes=16,
    ),
    Situation(
        # All six are more than 95 %: so it is from minute 16 on.
        "nobody has got the lock for two minutes",
        "VipscopeXtablesLockContention",
        {LOCK: "0x10 1x19"},
        [contention("critical", "100%"), contention("warning", "100%")],
        minutes=18,
        before=[contention("warning", "100%")],
    ),
    Situation(
        "the lock is held for 95 % of the time",
        "VipscopeXtablesLockContention",
        {LOCK: steady(0.95)},
        [contention("warning", "95%")],
        before=None,
    ),
    Situation(
        "the lock is held for half of the time",
        "VipscopeXtablesLockContention",
        {LOCK: points([1, 0] * 10)},
        minutes=12,
    ),
]  # fmt: skip

# --- connection tracking and IPVS -----------------------------------------------------------------


def full(severity: str, share: str) -> Expected:
    return Expected(
        severity, "conntrack", HERE,
        "Connection tracking on n1 is nearly full.",
        f"{share} of the connections that n1 can track are in use. Beyond, it drops the first"
        " packet of new ones.",
    )  # fmt: skip


def tracked(entries: int, limit: int = 1000) -> dict[str, str]:
    return {one(m.CONNTRACK_ENTRIES): steady(entries), one(m.CONNTRACK_LIMIT): steady(limit)}


def sysctl(name: str, value: int) -> Expected:
    return Expected(
        "warning", "sysctl", {**HERE, "name": name},
        f"net.ipv4.vs.{name} on n1 delays connections.",
        f"net.ipv4.vs.{name} is {value} on n1, which with this kernel and so many virtual servers"
        " delays or loses connections.",
    )  # fmt: skip


def ipvs(servers: int, kernel: str, **sysctls: int) -> dict[str, str]:
    return {
        **{
            one(m.IPVS_VIRTUAL_SERVERS, family="ipv4", protocol=protocol, scheduler="rr"): steady(
                of
            )
            for protocol, of in (("tcp", servers - servers // 2), ("udp", servers // 2))
        },
        one(m.NODE_INFO, nodename="n1", kernel=kernel): steady(1),
        **{one(m.IPVS_SYSCTL, name=name): steady(value) for name, value in sysctls.items()},
    }


GOOD = {"conn_reuse_mode": 0, "expire_nodest_conn": 1, "run_estimation": 1}
INSERT_FAILED = one(m.CONNTRACK["insert_failed"])
EMPTY = one(m.IPVS_EMPTY_VIRTUAL_SERVERS, family="ipv4", protocol="tcp")

CONNTRACK = [
    Situation(
        "the table is filled to four fifths and one more",
        "VipscopeConntrackFull",
        tracked(801),
        [full("warning", "80.1%")],
        minutes=1,
    ),
    Situation("it is filled to four fifths", "VipscopeConntrackFull", tracked(800)),
    Situation("it has no limit", "VipscopeConntrackFull", tracked(800, limit=0)),
    Situation(
        "it is all but full",
        "VipscopeConntrackFull",
        tracked(951),
        [full("critical", "95.1%"), full("warning", "95.1%")],
        minutes=1,
    ),
    Situation(
        "it is filled to 95 %", "VipscopeConntrackFull", tracked(950), [full("warning", "95%")],
        before=None,
    ),
    Situation(
        "more than one connection a second cannot be tracked",
        "VipscopeConntrackInsertFailed",
        {INSERT_FAILED: since(11, 75)},
        [
            Expected(
                "warning", "conntrack", HERE,
                "Connections on n1 clash.",
                "1.25 connections per second on n1 could not be tracked, because another had the"
                " same addresses and ports; the first packets of some of them may be lost.",
            )
        ],
        minutes=20,
    ),
    Situation(
        "one a second cannot", "VipscopeConntrackInsertFailed", {INSERT_FAILED: growing(60)}
    ),
    Situation(
        "packets and older connections are dropped",
        "VipscopeConntrackDrops",
        {
            one(m.CONNTRACK["drop"]): since(11, 21),
            one(m.CONNTRACK["early_drop"]): since(11, 15),
        },
        [
            Expected(
                "critical", "conntrack", HERE,
                "n1 drops packets that it cannot track.",
                "Connection tracking on n1 drops 240m packets or older connections per second:"
                " clients try again after a second or more.",
            )
        ],
        minutes=12,
    ),
    Situation(
        "few are dropped",
        "VipscopeConntrackDrops",
        {one(m.CONNTRACK["drop"]): growing(3), one(m.CONNTRACK["early_drop"]): growing(2.9)},
    ),
]  # fmt: skip

IPVS = [
    Situation(
        "a virtual server has no real server",
        "VipscopeEmptyVirtualServer",
        {EMPTY: steady(1), EMPTY.replace("tcp", "udp"): steady(1)},
        [
            Expected(
                "info", "empty_virtual_server", HERE,
                "IPVS on n1 has virtual servers without a real server.",
                "2 virtual servers on n1 have no real server, so their Services refuse connections."
                " For Services without endpoints that is as it must be.",
            )
        ],
        minutes=5,
    ),
    Situation(
        "a virtual server had none for a few minutes",
        "VipscopeEmptyVirtualServer",
        {EMPTY: "0x5 1x9"},
    ),
    Situation(
        "two nodes are in mode ipvs",
        "VipscopeDeprecatedMode",
        {one(m.PROXY_MODE, node=node, mode="ipvs"): steady(1) for node in ("n1", "n2")},
        [
            Expected(
                "info", "deprecated_mode", CLUSTER,
                "kube-proxy's mode ipvs is deprecated.",
                "2 nodes hold mode ipvs, deprecated since Kubernetes 1.35. Mode nftables takes its"
                " place.",
            )
        ],
        minutes=15,
    ),
    Situation(
        "no node is in mode ipvs",
        "VipscopeDeprecatedMode",
        {one(m.PROXY_MODE, mode="ipvs"): steady(0), IPTABLES: steady(1)},
        minutes=16,
    ),
    Situation(
        "every setting of IPVS is harmful here",
        "VipscopeHarmfulSysctl",
        ipvs(10_000, "5.8.1", conn_reuse_mode=1, expire_nodest_conn=0, run_estimation=1),
        [
            sysctl("conn_reuse_mode", 1),
            sysctl("expire_nodest_conn", 0),
            sysctl("run_estimation", 1),
        ],
        minutes=15,
    ),
    Situation(
        "the kernel is just new enough and the servers are one too few",
        "VipscopeHarmfulSysctl",
        ipvs(9_999, "5.9.0", **GOOD | {"conn_reuse_mode": 1}),
        minutes=16,
    ),
    Situation(
        "a kernel's second number has two digits",
        "VipscopeHarmfulSysctl",
        ipvs(1, "5.10.0", **GOOD | {"conn_reuse_mode": 1}),
        minutes=16,
    ),
    Situation(
        "every setting is as it has to be",
        "VipscopeHarmfulSysctl",
        ipvs(10_000, "5.8.1", **GOOD | {"run_estimation": 0}),
        minutes=16,
    ),
    Situation(
        "IPVS is loaded but not used",
        "VipscopeHarmfulSysctl",
        ipvs(0, "6.1.0", **GOOD | {"expire_nodest_conn": 0}),
        minutes=16,
    ),
]  # fmt: skip

# --- the cluster ----------------------------------------------------------------------------------

UNROUTABLE = one(
    m.SERVICE_UNROUTABLE, namespace="shop", service="cart", port="http", reason="pods_not_ready"
)
EVERYWHERE = (
    "selector_matches_no_pods", "pods_not_ready", "port_name_mismatch", "no_endpoint_slices",
    "load_balancer_pending", "external_name_unresolvable",
)  # fmt: skip
"""Reasons that are wrong wherever one looks from."""
CHANGES = one(m.ENDPOINT_CHANGES, change="ready")
LAST_EVENT = one(m.WATCH_LAST_EVENT, resource="endpointslices")


def nobody(severity: str, reason: str) -> Expected:
    return Expected(
        severity, "unroutable",
        {**CLUSTER, "namespace": "shop", "service": "cart", "port": "http", "reason": reason},
        "Service shop/cart routes to nobody.",
        f"Port http of Service shop/cart routes to nobody: {reason}.",
    )  # fmt: skip


THE_CLUSTER = [
    Situation(
        "Services route to nobody, for each of the reasons",
        "VipscopeServiceUnroutable",
        {UNROUTABLE.replace("pods_not_ready", reason): steady(1) for reason in EVERYWHERE},
        [nobody("warning", reason) for reason in EVERYWHERE],
        minutes=5,
    ),
    Situation(
        "a Service routed to nobody for four minutes",
        "VipscopeServiceUnroutable",
        {UNROUTABLE: "1x3 _ stale"},
    ),
    Situation(
        "a replica of the exporter takes over, on another node",
        "VipscopeServiceUnroutable",
        {UNROUTABLE: "1x5 stale", UNROUTABLE.replace("n1", "n2"): "_x4 1x9"},
        [nobody("warning", "pods_not_ready")],
        minutes=8,
        before=None,
    ),
    Situation(
        "policy Local leaves a Service without endpoints on two nodes",
        "VipscopeServiceUnroutable",
        {one(m.SERVICE_UNROUTABLE, namespace="shop", service="cart", port="http",
             reason="no_local_endpoints", node=node): steady(1) for node in ("n1", "n2")},
        [nobody("info", "no_local_endpoints")],
        minutes=5,
    ),
    Situation(
        "a node has not programmed a Service, which is drift",
        "VipscopeServiceUnroutable",
        {one(m.SERVICE_UNROUTABLE, namespace="shop", service="cart", port="http",
             reason="not_programmed"): steady(1)},
    ),
    Situation(
        "more than fifty endpoints change a second",
        "VipscopeEndpointChurn",
        {
            CHANGES: since(11, 60 * 50),
            one(m.ENDPOINT_CHANGES, change="unready"): since(11, 60),
        },
        [
            Expected(
                "warning", "churn", CLUSTER,
                "Endpoints change in a storm.",
                "51 endpoints per second change in the cluster, and each node's kube-proxy writes"
                " each of them.",
            )
        ],
        minutes=20,
    ),
    Situation("fifty change a second", "VipscopeEndpointChurn", {CHANGES: growing(60 * 50)}),
    Situation(
        "the API server is silent",
        "VipscopeWatchStale",
        {LAST_EVENT: steady(0)},
        [
            Expected(
                "warning", "watch", {**CLUSTER, "resource": "endpointslices"},
                "The API server is silent about endpointslices.",
                "The API server was last heard of endpointslices 7m 0s ago. What is exported of the"
                " cluster is as old.",
            )
        ],
        minutes=7,
    ),
    Situation(
        "the API server was silent for five minutes",
        "VipscopeWatchStale",
        {LAST_EVENT: steady(120)},
        minutes=7,
    ),
]  # fmt: skip

# --- the objective --------------------------------------------------------------------------------


def burn(severity: str, share: str, days: str) -> Expected:
    edge = {
        "latency_source": "istio",
        "source": "shop/web",
        "destination": "cart",
        "destination_namespace": "shop",
    }
    sloth = {
        "sloth_service": "shop/cart",
        "sloth_slo": "latency-istio-shop/web",
        "sloth_id": "shop/cart-latency-istio-shop/web",
    }
    return Expected(
        severity, "latency", {**CLUSTER, **edge, **sloth},
        "shop/web gets slow answers from cart.",
        f"{share} of the requests from shop/web to cart, as istio measures them, took more than"
        f" 50 ms. Only 1 % may: like this the budget of 30 days lasts {days} days at most.",
    )  # fmt: skip


def istio(*spells: tuple[int, float, float]) -> dict[str, str]:
    """Spells of (minutes, requests a minute, share of them that takes between 50 and 100 ms)."""

    def counter(of: Callable[[float], float]) -> str:
        count, texts = 0.0, ["0"]
        for minutes, per_minute, slow in spells:
            step = per_minute * of(slow)
            texts.append(growing_for(minutes, step, count + step))
            count += minutes * step
        return " ".join(texts)

    labels = {
        "reporter": "source", "source_workload_namespace": "shop", "source_workload": "web",
        "destination_service_namespace": "shop", "destination_service_name": "cart",
    }  # fmt: skip
    name = "istio_request_duration_milliseconds_bucket"
    return {
        one(name, **labels, le="50"): counter(lambda slow: 1 - slow),
        one(name, **labels, le="100"): counter(lambda _: 1),
        one(name, **labels, le="+Inf"): counter(lambda _: 1),
    }


def constant(slow: float, per_minute: float = 100_000) -> dict[str, str]:
    """The same share all the time."""
    return istio((600, per_minute, slow))


BUSY = (60, 10_000, 0.0)
"""An hour with so many requests that what comes after it burns no budget of three days, or of any
other window that reaches back to it. So of all burn rates only one is left to fire."""


def after(*spells: tuple[int, float]) -> dict[str, str]:
    """BUSY, and then a request a second, of which a share is slow: (minutes, share)."""
    return istio(BUSY, *((minutes, 60, slow) for minutes, slow in spells))


def burns(
    title: str, spells: Sequence[tuple[int, float]], fires: Sequence[Expected] = ()
) -> Situation:
    """What fires at the end of the spells that come after BUSY."""
    minutes = BUSY[0] + sum(minutes for minutes, _ in spells)
    return Situation(title, "VipscopeLatencyBudgetBurn", after(*spells), fires, minutes, None, 5)


OBJECTIVE = [
    Situation(
        "15 % have been slow for two minutes, and there was nothing before",
        "VipscopeLatencyBudgetBurn",
        constant(0.15),
        [burn("critical", "15%", "5")],
        minutes=3,
    ),
    Situation(
        "15 % have been slow for a quarter of an hour",
        "VipscopeLatencyBudgetBurn",
        constant(0.15),
        [burn("critical", "15%", "5"), burn("warning", "15%", "30")],
        minutes=16,
        before=[burn("critical", "15%", "5")],
    ),
    Situation(
        "7 % are slow for hours",
        "VipscopeLatencyBudgetBurn",
        constant(0.07),
        [burn("critical", "7%", "5"), burn("warning", "7%", "30")],
        minutes=60,
        before=None,
    ),
    Situation(
        "5.9 % are slow",
        "VipscopeLatencyBudgetBurn",
        constant(0.059),
        [burn("warning", "5.9%", "30")],
        minutes=16,
    ),
    Situation("0.9 % are slow", "VipscopeLatencyBudgetBurn", constant(0.009), minutes=60),
    Situation(
        "half of very few are slow",
        "VipscopeLatencyBudgetBurn",
        constant(0.5, per_minute=2.9),
        minutes=60,
    ),
    Situation(
        "2 % of a prober's first requests were slow",
        "VipscopeLatencyBudgetBurn",
        constant(0.02, per_minute=15),
        minutes=60,
    ),
    Situation(
        "15 % were, of as many as the smallest load has in an hour",
        "VipscopeLatencyBudgetBurn",
        constant(0.15, per_minute=14),
        [burn("critical", "15%", "5")],
        minutes=17,
    ),
    Situation(
        "2 % were, of as many as the smallest load has in three days",
        "VipscopeLatencyBudgetBurn",
        constant(0.02, per_minute=59),
        [burn("warning", "2%", "30")],
        minutes=237,
    ),
    # Page, an hour: 14.4.
    burns("15 % are slow for an hour only", [(70, 0.15)], [burn("critical", "15%", "5")]),
    burns("14 % are slow for an hour only", [(70, 0.14)]),
    burns("20 % are slow for 40 minutes", [(40, 0.20)]),
    burns("25 % were slow for an hour, until ten minutes ago", [(60, 0.25), (10, 0)]),
    # Page, six hours: 6.
    burns("7 % are slow for six hours only", [(370, 0.07)], [burn("critical", "7%", "5")]),
    burns("5.9 % are slow for six hours only", [(370, 0.059)]),
    burns("7 % are slow for five hours", [(60, 0), (300, 0.07)]),
    burns("20 % were slow for two hours, until 40 minutes ago", [(220, 0), (120, 0.2), (40, 0)]),
    # Ticket, a day: 3.
    burns("3.2 % are slow for a day only", [(1470, 0.032)], [burn("warning", "3.2%", "30")]),
    burns("2.9 % are slow for a day only", [(1470, 0.029)]),
    burns("4 % are slow for half a day", [(720, 0), (720, 0.04)]),
    burns("6 % were slow for a day, until three hours ago", [(1280, 0.06), (180, 0)]),
    # Ticket, three days: 1. It takes no day for as much to be slow as three days may see.
    Situation(
        "2 % are slow for hours, and were not before",
        "VipscopeLatencyBudgetBurn",
        istio((400, 600, 0), (480, 600, 0.02)),
        [burn("warning", "1.091%", "30")],
        minutes=880,
        before=None,
        every=5,
    ),
    Situation(
        "2 % were slow for hours, until seven hours ago",
        "VipscopeLatencyBudgetBurn",
        istio((600, 600, 0.02), (420, 600, 0)),
        minutes=1020,
        every=5,
    ),
    Situation(
        "a histogram has no bound at the threshold",
        "VipscopeThresholdIsNoBucket",
        {
            one("traces_service_graph_request_client_seconds_bucket",
                client="web", server="cart", le=le): growing(60)
            for le in ("0.1", "0.2", "+Inf")
        },
        [
            Expected(
                "info", "configuration", {**CLUSTER, "latency_source": "tempo"},
                "The SLO cannot be judged for tempo.",
                "1 edges of tempo have a histogram without a bucket bound at 0.05 s.",
            )
        ],
        minutes=16,
    ),
    Situation(
        "a histogram has one", "VipscopeThresholdIsNoBucket", constant(0), minutes=20
    ),
]  # fmt: skip

SITUATIONS = (
    *EXPORTER, *GROWTH, *DRIFT, *KUBE_PROXY, *CONNTRACK, *IPVS, *THE_CLUSTER, *OBJECTIVE,
)  # fmt: skip
