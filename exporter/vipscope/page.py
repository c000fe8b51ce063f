"""The page for people: a snapshot and the last hour in, HTML out.

It needs no script and nothing from the network. It shows what the newest snapshot says: what is
wrong, worst first, and what there is. What was not read has no number, and is not taken for well.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeVar

from vipscope import __version__
from vipscope.dataplane.depth import depths_by_family, nearest_rank
from vipscope.dataplane.mode import proxy_modes
from vipscope.dataplane.naming import KUBE_PROXY
from vipscope.diagnosis.findings import findings
from vipscope.diagnosis.findings.finding import Finding, Severity, count, span
from vipscope.history import INTERVAL, LENGTH, Sample, Series, numbers_of, rules_by_class
from vipscope.markup import Markup, sparkline, tag
from vipscope.settings import COLLECTORS
from vipscope.snapshot import (
    Cluster,
    Conntrack,
    Drift,
    Ipvs,
    KubeProxy,
    Outcome,
    Probes,
    Reading,
    Record,
    Ruleset,
    Snapshot,
)

MOST: Final = 20
"""Rows of a list whose length strangers decide."""

STYLE: Final = """\
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--ground:#f6f8fa;--card:#fff;
--edge:#d1d9e0;--link:#0969da;--line:#0969da;--broken:#b42318;--warning:#8a5a00;--ok:#1a7f37}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--ground:#0d1117;
--card:#151b23;--edge:#30363d;--link:#58a6ff;--line:#58a6ff;--broken:#ff7b72;--warning:#e3b341;
--ok:#3fb950}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:64rem;padding:1rem;
color:var(--ink);background:var(--ground);overflow-wrap:anywhere}
h1{font-size:1.5rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .5rem}h3{font-size:1rem;margin:0}
p{margin:.25rem 0}a{color:var(--link)}nav a{margin-right:1rem}
.soft,caption,.card small{color:var(--soft)}small{font-size:.875rem}
.broken,.denied,.timeout,.failed{color:var(--broken)}.warning,.waiting{color:var(--warning)}
.ok{color:var(--ok)}.verdict{font-size:1.15rem;font-weight:600;margin:1rem 0}
.finding,.card,table{background:var(--card);border:1px solid var(--edge);border-radius:6px}
.finding{padding:.75rem 1rem;margin:.5rem 0;border-left:4px solid currentColor}
.finding>*{color:var(--ink)}.finding>.level{color:inherit;font-weight:600}
.finding ul{margin:.25rem 0;padding-left:1.25rem}.finding code{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(10.5rem,100%),1fr));gap:.5rem}
.card{padding:.75rem 1rem}.card b{display:block;font-size:1.5rem;line-height:1.3}
.card small{display:block}main+.cards{margin-top:1rem}
.tables{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(24rem,100%),1fr));
gap:0 .5rem;align-items:start}
table{border-collapse:separate;border-spacing:0;width:100%;margin:.5rem 0}
caption{text-align:left;padding:.25rem 0}
th,td{text-align:left;padding:.3rem .75rem;vertical-align:top;font-weight:400}
tbody tr>*{border-top:1px solid var(--edge)}thead th{color:var(--soft)}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.line{display:block;width:100%;min-width:4rem;max-width:12rem;height:1.5rem;fill:none;
stroke:var(--line);stroke-width:2;stroke-linecap:round;stroke-linejoin:round}
.line polyline{vector-effect:non-scaling-stroke}
.wide th,.wide td:nth-child(2){white-space:nowrap}
@media(max-width:44rem){.wide thead{display:none}.wide tr{display:block;padding:.3rem 0}
.wide tbody tr+tr{border-top:1px solid var(--edge)}
.wide tr>*{display:block;border:0;padding:0 .75rem}.wide td:empty{display:none}
.wide tbody th{font-weight:600}
.wide td[data-of]::before{content:attr(data-of) ": ";color:var(--soft)}.wide .n{text-align:left}
th,td{padding:.3rem .5rem}}
"""
POLICY: Final = (
    "default-src 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy under which the page looks as it should, and can load and run nothing."""

R = TypeVar("R", bound=Record)


class Links(NamedTuple):
    """Where the page leads to."""

    telemetry_path: str
    dashboards: str
    """URL of the dashboards, "" where none was given."""


class Page:
    """Renders the page: in a thread, and once for all who ask in one second of one snapshot."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._snapshot: Snapshot | None = None
        self._second = 0
        self._text: asyncio.Future[str] | None = None

    async def render(self, snapshot: Snapshot, history: Sequence[Sample], now: float) -> str:
        """The page at Unix time `now`."""
        second = int(now)
        if self._text is None or self._snapshot is not snapshot or self._second != second:
            self._snapshot, self._second = snapshot, second
            self._text = asyncio.ensure_future(
                asyncio.to_thread(page, snapshot, history, now, self._links)
            )
        # Shielded: one who hangs up must not take the text from the others.
        return await asyncio.shield(self._text)


def page(snapshot: Snapshot, history: Sequence[Sample], now: float, links: Links) -> str:
    """The page at Unix time `now`. Whatever comes from node, API and settings is escaped."""
    node = snapshot.node
    hour = _Hour(history, numbers_of(snapshot), now)
    body = tag(
        "body",
        _head(snapshot, now, links),
        _findings(snapshot, now),
        _at_a_glance(snapshot, hour, now),
        *(_rules(each, hour, now) for each in _all(snapshot, Ruleset)),
        *map(_ipvs, _all(snapshot, Ipvs)),
        *map(_cluster, _all(snapshot, Cluster)),
        _collectors(snapshot, now),
    )
    head = tag(
        "head",
        Markup(
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            '<meta name="color-scheme" content="light dark">'
        ),
        tag("title", f"vipscope on {node.nodename}"),
        tag("style", Markup(STYLE)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


class _Hour:
    """The last hour's samples and, as the last point of each line, what is known now."""

    def __init__(
        self, history: Sequence[Sample], present: Mapping[Series, int], now: float
    ) -> None:
        began = now - INTERVAL * LENGTH
        # The clock may have been set back in between.
        self._samples = sorted(
            (each for each in history if began <= each.at <= now), key=lambda each: each.at
        )
        self._present = present
        self._began, self._length = began, INTERVAL * LENGTH

    def present(self, *series: str) -> str:
        """What is known now, of a series that is."""
        return f"{self._present[series]:,}"

    def line(self, *series: str) -> Markup:
        """The series as a line; nothing before there is a history of it."""
        points: list[tuple[float, int | None]] = []
        before = None
        for at, numbers in self._samples:
            if before is not None and at - before > 1.5 * INTERVAL:
                points.append((0.0, None))
            points.append(((at - self._began) / self._length, numbers.get(series)))
            before = at
        if all(value is None for _, value in points):
            return Markup()
        return sparkline([*points, (1.0, self._present.get(series))], "last hour")


def _head(snapshot: Snapshot, now: float, links: Links) -> Markup:
    node = snapshot.node
    ways = [tag("a", links.telemetry_path, href=links.telemetry_path)]
    if links.dashboards:
        ways.append(tag("a", "Dashboards", href=links.dashboards, rel="noreferrer"))
    ways += [tag("a", path, href=path) for path in ("/healthz", "/readyz")]
    at = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return tag(
        "header",
        tag("h1", node.nodename),
        tag("p", f"vipscope {__version__}, Linux {node.kernel}, {at}", class_="soft"),
        tag("nav", *ways),
    )


# --- what is wrong --------------------------------------------------------------------------------


def _findings(snapshot: Snapshot, now: float) -> Markup:
    waiting = [name for name in COLLECTORS if name not in snapshot.readings]
    looked = any(each.outcome is not Outcome.DISABLED for each in snapshot.readings.values())
    found = findings(snapshot, now) if looked else ()
    counted = Counter(each.severity for each in found)
    parts = [f"{counted[severity]} {severity}" for severity in Severity if counted[severity]]
    verdict, level = "Nothing is wrong", "ok"
    if found:
        verdict = f"{count(len(found), 'finding')}: {', '.join(parts)}"
        level = found[0].severity.value
    if waiting:
        verdict = (
            f"{verdict} so far; not read yet: {', '.join(waiting)}"
            if looked
            else "Reading for the first time"
        )
        level = level if found else "waiting"
    return tag("main", tag("p", verdict, class_=f"verdict {level}"), *map(_finding, found))


def _finding(found: Finding) -> Markup:
    evidence = [tag("li", line) for line in found.evidence[:MOST]]
    if (more := len(found.evidence) - MOST) > 0:
        evidence.append(tag("li", f"and {more:,} more, which `vipscope doctor` names"))
    return tag(
        "article",
        tag("span", found.severity, class_="level"), " ", tag("code", found.id),
        tag("h3", found.title),
        *([tag("ul", *evidence)] if evidence else []),
        *([tag("p", f"→ {found.advice}")] if found.advice else []),
        class_=f"finding {found.severity}",
    )  # fmt: skip


# --- what there is --------------------------------------------------------------------------------


def _at_a_glance(snapshot: Snapshot, hour: _Hour, now: float) -> Markup:
    cards = [
        *_mode(snapshot),
        *_depth(snapshot, hour),
        *(_drift(each, hour) for each in _all(snapshot, Drift)),
        *(_kube_proxy(each, now) for each in _all(snapshot, KubeProxy)),
        *(_conntrack(each, hour) for each in _all(snapshot, Conntrack)),
        *(_unroutable(each, hour) for each in _all(snapshot, Cluster)),
        *(_probes(each) for each in _all(snapshot, Probes) if each.durations),
    ]
    return tag("section", *cards, class_="cards")


def _card(title: str, value: str, texts: Iterable[str], *lines: Markup) -> Markup:
    return tag(
        "div",
        title,
        tag("b", value),
        *lines,
        *(tag("small", text) for text in texts),
        class_="card",
    )


def _mode(snapshot: Snapshot) -> list[Markup]:
    modes = proxy_modes(snapshot, snapshot.readings.keys())
    held = [mode for mode, present in modes.items() if present]
    return [_card("Mode", " + ".join(held), ["by what the kernel holds"])] if held else []


def _depth(snapshot: Snapshot, hour: _Hour) -> list[Markup]:
    return [
        _card(
            f"Depth, {family}",
            hour.present("depth", family),
            [
                "rules before a Service's own, median",
                f"99 %: {nearest_rank(depths, 0.99):,}, most: {depths[-1]:,}",
                f"of {_count(len(depths), 'Service port')}",
            ],
            hour.line("depth", family),
        )
        for family, depths in depths_by_family(_all(snapshot, Ruleset)).items()
        if depths
    ]


def _drift(drift: Drift, hour: _Hour) -> Markup:
    differ = [
        *(
            f"{_count(number, 'Service port')} {kind}"
            for kind, number in sorted(drift.services.items())
            if number
        ),
        *(
            f"{_count(number, 'endpoint')} {kind}"
            for kind, number in sorted(drift.endpoints.items())
            if number
        ),
    ]
    if drift.oldest:
        differ.append(f"the oldest for {span(drift.oldest)}")
    if drift.undecided:
        differ.append("something has differed for less than the grace period")
    where = drift.mode if drift.mode == drift.backend else f"{drift.mode} ({drift.backend})"
    texts = differ or [f"{where} is as the API wants it"]
    return _card("Drift", hour.present("drift"), texts, hour.line("drift"))


def _kube_proxy(said: KubeProxy, now: float) -> Markup:
    health = {True: "healthy", False: "not healthy", None: "says nothing of its health"}
    texts = [] if said.mode is None else [f"says that its mode is {said.mode}"]
    if said.last_sync:
        texts.append(f"last sync {span(max(0.0, now - said.last_sync))} ago")
    if said.sync_pending_seconds:
        texts.append(f"a change waits for {span(said.sync_pending_seconds)}")
    return _card("kube-proxy", health[said.healthy], texts)


def _conntrack(conntrack: Conntrack, hour: _Hour) -> Markup:
    filled = f" ({conntrack.entries / conntrack.limit:.0%})" if conntrack.limit else ""
    return _card(
        "Tracked connections",
        hour.present("conntrack"),
        [f"of {conntrack.limit:,}{filled}"],
        hour.line("conntrack"),
    )


def _unroutable(cluster: Cluster, hour: _Hour) -> Markup:
    reasons = [
        f"{reason.replace('_', ' ')}: {number:,}"
        for reason, number in sorted(cluster.unroutable_services.items())
        if number
    ]
    texts = reasons or [f"of {_count(sum(cluster.services.values()), 'Service')}"]
    return _card("Unroutable Services", hour.present("unroutable"), texts, hour.line("unroutable"))


def _probes(probes: Probes) -> Markup:
    took: defaultdict[str, list[float]] = defaultdict(list)
    for (_, path), seconds in probes.handshakes.items():
        took[path] += seconds
    median = {
        path: f"{statistics.median(seconds) * 1e3:.2f} ms"
        for path, seconds in took.items()
        if seconds
    }
    return _card(
        "Handshake through a Service",
        median.get("vip", "none"),
        [
            "TCP, median of the last minutes",
            f"straight to an endpoint: {median.get('direct', 'none')}",
            f"{_count(sum(probes.failures.values()), 'failure')} since vipscope's start",
        ],
    )


_BACKENDS: Final = {"nft": "nf_tables", "legacy": "iptables-legacy"}


def _rules(ruleset: Ruleset, hour: _Hour, now: float) -> Markup:
    rules, chains = rules_by_class(ruleset), Counter[tuple[str, str]]()
    tables = Counter[tuple[str, str]]()
    writers = ruleset.follow.transactions if ruleset.follow else {}
    for (family, table, owner, kind), counted in ruleset.counts.items():
        chains[owner, kind] += counted.chains
        tables[family, table] += counted.rules
    classes = sorted(rules, key=lambda each: (each[0] != KUBE_PROXY, -rules[each], each))
    total, age = sum(rules.values()), span(max(0.0, now - ruleset.counted_at))
    return tag(
        "section",
        tag("h2", f"{_count(total, 'rule')} in {_BACKENDS[ruleset.backend]}"),
        _table(
            f"As the kernel held them {age} ago",
            ("Owner and class", _numeric("Rules"), "Last hour", _numeric("Chains")),
            (
                (
                    f"{owner}: {kind}" if kind else owner,
                    _number(rules[owner, kind]),
                    tag("td", hour.line("rules", ruleset.backend, owner, kind)),
                    _number(chains[owner, kind]),
                )
                for owner, kind in classes
            ),
        ),
        tag(
            "div",
            _counts(
                "Table", "Rules", {" ".join(key): each for key, each in tables.items() if each}
            ),
            _counts(
                "Set or map of kube-proxy",
                "Elements",
                {f"{name} ({family})": n for (family, _, name), n in ruleset.set_elements.items()},
            ),
            _counts(
                "Who writes rules, since vipscope's start",
                "Commits",
                {process or "unknown": number for process, number in writers.items()},
            ),
            class_="tables",
        ),
    )


def _ipvs(ipvs: Ipvs) -> Markup:
    servers = sum(ipvs.virtual_servers.values())
    if not servers:
        return Markup()
    return tag(
        "section",
        tag("h2", f"{_count(servers, 'virtual server')} in IPVS"),
        tag(
            "div",
            *(
                _counts(of, "Number", {" ".join(key): n for key, n in numbers.items() if n})
                for of, numbers in (
                    ("Virtual servers", ipvs.virtual_servers),
                    ("Real servers", ipvs.real_servers),
                )
            ),
            class_="tables",
        ),
    )


def _cluster(cluster: Cluster) -> Markup:
    services, slices = sum(cluster.services.values()), sum(cluster.slices.values())
    return tag(
        "section",
        tag("h2", f"{_count(services, 'Service')} and {_count(slices, 'EndpointSlice')}"),
        tag(
            "div",
            *(
                _counts(of, "Number", {name.replace("_", " "): n for name, n in numbers.items()})
                for of, numbers in (
                    ("Services by type", cluster.services),
                    ("Endpoints by condition", cluster.endpoints),
                    ("Services that route to nobody, by reason", cluster.unroutable_services),
                )
            ),
            class_="tables",
        ),
    )


# --- vipscope itself ------------------------------------------------------------------------------


def _collectors(snapshot: Snapshot, now: float) -> Markup:
    rows = (
        _collector(name, snapshot.readings.get(name), reads, now)
        for name, reads in COLLECTORS.items()
    )
    costs = map(_numeric, ("Last success", "Took", "CPU in all"))
    head = ("Collector", "Outcome", *costs, "Detail")
    return tag("section", tag("h2", "Collectors"), _table("", head, rows, class_="wide"))


def _collector(name: str, reading: Reading | None, reads: str, now: float) -> Sequence[str]:
    if reading is None:
        return name, tag("td", "waiting", class_="waiting"), *_labelled("", "", ""), reads
    if reading.outcome is Outcome.DISABLED:
        return name, tag("td", reading.outcome, class_="soft"), *_labelled("", "", ""), reads
    last = reading.last_success
    age = "never" if last is None else f"{span(max(0.0, now - last))} ago"
    took = "" if reading.duration is None else f"{reading.duration * 1e3:,.1f} ms"
    return (
        name,
        tag("td", reading.outcome, class_=reading.outcome),
        *_labelled(age, took, f"{reading.cpu_seconds:,.2f} s"),
        reading.detail or reads,
    )


def _labelled(age: str, took: str, cpu: str) -> tuple[Markup, ...]:
    """Cells that on a phone stand below each other, where the table's head is not."""
    names = ("last success", "took", "CPU in all")
    return tuple(
        tag("td", value, data_of=of, class_="n") if value else tag("td")
        for of, value in zip(names, (age, took, cpu), strict=True)
    )


# --- tables ---------------------------------------------------------------------------------------


def _table(
    caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], *, class_: str = ""
) -> Markup:
    """Cells that are text are headers when they come first, and plain cells behind."""
    body = [
        tag(
            "tr",
            tag("th", first, scope="row"),
            *(cell if isinstance(cell, Markup) else tag("td", cell) for cell in cells),
        )
        for first, *cells in rows
    ]
    if not body:
        return Markup()
    return tag(
        "table",
        *([tag("caption", caption)] if caption else []),
        tag(
            "thead",
            tag(
                "tr",
                *(
                    each if isinstance(each, Markup) else tag("th", each, scope="col")
                    for each in head
                ),
            ),
        ),
        tag("tbody", *body),
        class_=class_,
    )


def _counts(of: str, what: str, numbers: Mapping[str, int]) -> Markup:
    """The largest first; of many the rest in one row."""
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    rows = [(name, _number(number)) for name, number in ordered[:MOST]]
    if rest := ordered[MOST:]:
        rows.append((f"{len(rest):,} others", _number(sum(number for _, number in rest))))
    return _table("", (of, _numeric(what)), rows)


def _numeric(head: str) -> Markup:
    return tag("th", head, scope="col", class_="n")


def _count(number: int, what: str) -> str:
    """`205,005 rules`."""
    return f"{number:,}{count(number, what).removeprefix(str(number))}"


def _number(number: int) -> Markup:
    return tag("td", f"{number:,}", class_="n")


def _all(snapshot: Snapshot, kind: type[R]) -> list[R]:
    """The records of one kind, in the order of their collectors' names."""
    records = (reading.record for _, reading in sorted(snapshot.readings.items()))
    return [record for record in records if isinstance(record, kind)]
