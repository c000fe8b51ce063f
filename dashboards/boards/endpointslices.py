"""EndpointSlices: what the API server sends to all nodes, who causes it, and if it arrives."""

from __future__ import annotations

from alerts import fleet, links
from alerts.settings import Settings
from dashboards.panels import (
    Board,
    Column,
    Query,
    Row,
    bars,
    heatmap,
    high_is_bad,
    stat,
    table,
    timeseries,
)
from dashboards.queries import (
    HERE,
    VARIABLES,
    bucket,
    marks,
    most,
    pick,
    quantile,
    rate,
    summed,
    to,
)
from vipscope import metrics as m


def board(settings: Settings) -> Board:
    """The dashboard."""
    storm = high_is_bad(settings.endpoint_changes / 2, settings.endpoint_changes)
    silent = high_is_bad(settings.watch_age / 2, settings.watch_age)
    nodes = summed(pick(fleet.EXPORTERS, HERE))
    sent = summed(rate(m.SLICE_EVENT_BYTES, HERE), how="max")
    changes = summed(rate(m.ENDPOINT_CHANGES, HERE), "change", how="max")
    slices = summed(pick(m.SLICES, HERE), "address_type", how="max")
    fill = summed(pick(bucket(m.SLICE_ENDPOINTS), HERE), "le", how="max")
    silence = f"time() - {summed(pick(m.WATCH_LAST_EVENT, HERE), 'resource', how='max')}"
    churn = summed(
        rate(m.SERVICE_ENDPOINT_CHANGES, HERE, service="~.+"), "namespace", "service", how="max"
    )
    return Board(
        links.SLICES,
        "EndpointSlices",
        "What changes of endpoints cost the cluster, who causes them, and whether they arrive.",
        VARIABLES,
        marks(),
        (
            Row(
                "Is there a storm?",
                (
                    stat(
                        "Endpoints that change per second: every node writes each of them",
                        f"{settings.endpoint_changes:g} are a storm.",
                        f"sum({changes})", "changes", unit="cps", steps=storm, width=6,
                    ),
                    stat(
                        "Bytes per second that the API server sends for it, to all nodes",
                        "Size of the events times the nodes, at most: kube-proxy takes a denser"
                        " encoding than the JSON that is measured here.",
                        f"{sent} * {nodes}", "fan-out", unit="Bps",
                        steps=high_is_bad(10e6, 100e6), width=6,
                    ),
                    stat(
                        "EndpointSlices: what a kube-proxy that starts must list",
                        "All that kube-proxy watches.",
                        f"sum({slices})", "slices", steps=high_is_bad(20_000, 50_000), width=6,
                    ),
                    stat(
                        "The watch is silent: what is shown is as old",
                        "Time since the API server was last heard; a bookmark is due every minute.",
                        f"max({silence})", "silence", unit="s", steps=silent, width=6,
                    ),
                ),
            ),
            Row(
                "What is sent",
                (
                    timeseries(
                        "Events: modified that outnumber the rest are rollouts or flapping Pods",
                        "EndpointSlice events per second, as every kube-proxy gets them.",
                        Query(summed(rate(m.SLICE_EVENTS, HERE), "event", how="max"), "{{event}}"),
                        unit="ops",
                    ),
                    timeseries(
                        "Bytes and their fan-out: the second is what the API server sends",
                        "JSON bytes of the events, and times the number of nodes.",
                        Query(sent, "events"), Query(f"{sent} * {nodes}", "to all nodes"),
                        unit="Bps", steps=high_is_bad(10e6, 100e6),
                    ),
                    timeseries(
                        "Changes of endpoints: ready and unready that alternate are flapping Pods",
                        "Endpoints per second by what happened to them.",
                        Query(changes, "{{change}}"), unit="cps", stacked=True, steps=storm,
                    ),
                    bars(
                        "Top churners: these Services cause it",
                        "Changes of endpoints per second by Service.",
                        most(churn), "{{namespace}}/{{service}}", unit="cps", width=12, steps=storm,
                        link=to("Service", links.SERVICE, "namespace", "service"),
                    ),
                ),
            ),
            Row(
                "How well slices are filled",
                (
                    heatmap(
                        "Endpoints in a slice: many small slices make many events",
                        "Slices by their number of endpoints; a slice takes 100.",
                        fill, unit="short",
                    ),
                    timeseries(
                        "Fill: a median that falls is fragmentation",
                        "Endpoints in a slice.",
                        Query(quantile(0.5, fill), "median"), Query(quantile(0.9, fill), "p90"),
                        width=6,
                    ),
                    timeseries(
                        "Endpoints by condition: not_ready that climbs is trouble",
                        "Each is ready or not_ready, and may be serving and terminating besides.",
                        Query(summed(pick(m.ENDPOINTS, HERE), "condition", how="max"),
                              "{{condition}}"),
                        width=6,
                    ),
                ),
            ),
            Row(
                "Does it arrive?",
                (
                    timeseries(
                        "Silence by resource: above the line the picture is stale",
                        "Time since the API server was last heard of each resource.",
                        Query(silence, "{{resource}}"), unit="s", steps=silent,
                    ),
                    timeseries(
                        "Watch restarts: anything but closed is trouble",
                        "Per second by reason. closed is the server's own doing every few minutes.",
                        Query(summed(rate(m.WATCH_RESTARTS, HERE), "resource", "reason", how="max"),
                              "{{resource}}, {{reason}}"), unit="ops", steps=high_is_bad(0.05, 0.5),
                    ),
                    timeseries(
                        "Programming latency, all nodes: how long until kernels have a change",
                        "From an endpoint's change to the kernel's commit.",
                        Query(quantile(0.99, pick(fleet.PROGRAMMING, HERE)), "p99"),
                        Query(quantile(0.5, pick(fleet.PROGRAMMING, HERE)), "median"),
                        unit="s", steps=high_is_bad(10, 60),
                    ),
                    table(
                        "Objects held: two replicas that differ have not the same picture",
                        "Objects of the API by resource, the most that an exporter holds.",
                        ("resource",),
                        Column("objects", summed(pick(m.WATCH_OBJECTS, HERE), "resource",
                                                 how="max")),
                        Column("silence", silence, "s", silent),
                    ),
                ),
            ),
        ),
    )  # fmt: skip
