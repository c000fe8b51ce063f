"""vipscope itself: whether it sees, how old that is, and what it costs."""

from __future__ import annotations

from alerts import fleet, links
from alerts.settings import Settings
from dashboards.panels import (
    FEW_ARE_BAD,
    NONE_IS_GOOD,
    Board,
    Column,
    Query,
    Row,
    high_is_bad,
    low_is_bad,
    stat,
    table,
    timeseries,
)
from dashboards.queries import HERE, THIS_NODE, VARIABLES, marks, most, pick, summed, to
from vipscope import metrics as m

TROUBLED = "~denied|failed|timeout"


def board(settings: Settings) -> Board:
    """The dashboard."""
    old = high_is_bad(settings.snapshot_age / 2, settings.snapshot_age)
    up, all_ = (summed(pick(each, HERE)) for each in (fleet.EXPORTERS_UP, fleet.EXPORTERS))
    troubled = summed(pick(fleet.STATES, HERE, state=TROUBLED), "collector", "state")
    here = pick(m.COLLECTOR_STATE, HERE, state=TROUBLED)
    success = pick(m.COLLECTOR_LAST_SUCCESS, THIS_NODE)
    return Board(
        links.EXPORTER,
        "vipscope itself",
        "Whether vipscope sees, how old what it shows is, and what it costs.",
        VARIABLES,
        marks(),
        (
            Row(
                "Does it see?",
                (
                    stat(
                        "Exporters that answer: without one, a node is dark",
                        "Share of the targets that can be scraped.",
                        f"{up} / {all_}", "answer",
                        unit="percentunit", steps=low_is_bad(0.95, 1), width=6,
                    ),
                    stat(
                        "Collectors in trouble: their series are withheld",
                        "Over all nodes: reads that are denied, fail or time out.",
                        f"sum({troubled})", "collectors", steps=NONE_IS_GOOD, width=6,
                    ),
                    stat(
                        "The oldest picture: old, a node is too busy to be counted",
                        "Age of the oldest counted ruleset.",
                        summed(pick(fleet.SNAPSHOT_AGE, HERE), how="max"), "age",
                        unit="s", steps=old, width=6,
                    ),
                    stat(
                        "Series: what Prometheus pays for it",
                        "Of all exporters.",
                        pick(fleet.SERIES, HERE), "series",
                        steps=high_is_bad(500_000, 2_000_000), width=6,
                    ),
                    timeseries(
                        "Outcomes: states other than ok and absent are trouble",
                        "Nodes by collector, where it is denied, fails or times out.",
                        Query(troubled, "{{collector}}, {{state}}"), steps=FEW_ARE_BAD,
                    ),
                    table(
                        "Look at the logs of these exporters",
                        "Collectors whose last read did not end well; without a node, of role"
                        " cluster.",
                        ("node", "collector", "state"),
                        Column("in trouble", f"{most(here, 20)} > 0", steps=NONE_IS_GOOD),
                        link=to("Node", links.NODE, "node"),
                    ),
                ),
            ),
            Row(
                "How old is it?",
                (
                    timeseries(
                        "Age of the oldest picture by backend: above the line it misleads",
                        "Time since the counted state was known to be the kernel's.",
                        Query(pick(fleet.SNAPSHOT_AGE, HERE), "{{backend}}"), unit="s", steps=old,
                        width=8,
                    ),
                    timeseries(
                        "Resyncs: overrun that climbs is a node that changes too fast to follow",
                        "Full reads of nf_tables per second by reason, all nodes.",
                        Query(pick(fleet.RESYNCS, HERE), "{{reason}}"), unit="ops",
                        steps=high_is_bad(1, 10), width=8,
                    ),
                    table(
                        "$node: a collector that has not ended well for long is broken",
                        "Age of each collector's last read that ended ok, and what it took.",
                        ("collector",),
                        Column("age", f"time() - {success}", "s", old),
                        Column("took", pick(m.COLLECTOR_DURATION, THIS_NODE), "s"),
                        width=8,
                    ),
                ),
            ),
            Row(
                "What does it cost?",
                (
                    timeseries(
                        "CPU by collector: together below the budget of 2 % of a core",
                        "Cores on the average node.",
                        Query(pick(fleet.COLLECTOR_CPU, HERE), "{{collector}}"),
                        unit="percentunit", stacked=True, steps=high_is_bad(0.02, 0.05),
                    ),
                    table(
                        "The dearest nodes: something changes all the time there",
                        "Cores that all reads take, and the series that a scrape gets. Without a"
                        " node: role cluster.",
                        ("node",),
                        Column("CPU", most(pick(fleet.CPU, HERE)), "percentunit",
                               high_is_bad(0.02, 0.05)),
                        Column("series", pick(m.SERIES, HERE), steps=high_is_bad(1_000, 5_000)),
                        link=to("Node", links.NODE, "node"),
                    ),
                ),
            ),
            Row(
                "Which version?",
                (
                    table(
                        "Versions: more than one is a roll-out under way",
                        "Exporters by version. Counted over the nodes.",
                        ("version", "python"),
                        Column("exporters", most(summed(pick(m.BUILD_INFO, HERE), "version",
                                                        "python", how="count"))),
                        width=24, height=6,
                    ),
                ),
            ),
        ),
    )  # fmt: skip
