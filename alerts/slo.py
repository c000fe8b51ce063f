"""The objective: a share of requests is faster than a threshold, for each caller and destination.

Series, labels and method are Sloth's, so that dashboards made for it read them: a Sloth service is
a destination, its SLO is the latency that one caller sees. The error ratio is that of requests,
never of a quantile, and longer windows are averages weighted by traffic.
"""

from __future__ import annotations

from collections.abc import Sequence

from alerts import links
from alerts.rule import Alert, Group, Record, Severity, series
from alerts.settings import DAY, HOUR, LEISURELY, MINUTE, Settings, duration
from alerts.sources import EDGE, EDGE_BUCKETS, spellings
from vipscope.metrics import Metric

LABELS = (*EDGE, "sloth_service", "sloth_slo", "sloth_id")

TOTAL = series("slo:vipscope_requests:rate5m", "Requests per second that are judged.", LABELS)
FAST = series("slo:vipscope_fast_requests:rate5m", "Those within the threshold.", LABELS)

HOURLY = {
    each: series(f"{str(each).removesuffix('5m')}1h", "The same, averaged over an hour.", LABELS)
    for each in (TOTAL, FAST)
}

PERIOD = 30 * DAY
SELDOM = 2 * MINUTE
"""Between evaluations of the period's ratio, which reads every point of it: with a point a minute
these were seven eighths of all points that the ratios read. A point is seen for 5 minutes, so that
an evaluation may be missed."""
WINDOWS = (5 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 6 * HOUR, DAY, 3 * DAY, PERIOD)
ERROR_RATIO = {
    window: series(
        f"slo:sli_error:ratio_rate{duration(window)}",
        "Share of requests that were too slow.",
        (*LABELS, "sloth_window"),
    )
    for window in WINDOWS
}
"""Window in seconds -> series."""

OBJECTIVE = series("slo:objective:ratio", "Share of requests that must be fast.", LABELS)
BUDGET = series("slo:error_budget:ratio", "Share of requests that may be slow.", LABELS)
DAYS = series("slo:time_period:days", "Days over which the budget is counted.", LABELS)
BURN_RATE = series(
    "slo:current_burn_rate:ratio", "How many times too fast the budget is spent now.", LABELS
)
PERIOD_BURN_RATE = series(
    "slo:period_burn_rate:ratio", "Share of the period's budget that is spent.", LABELS
)
REMAINING = series(
    "slo:period_error_budget_remaining:ratio", "Share of the period's budget that is left.", LABELS
)
INFO = series("sloth_slo_info", "1.", (*LABELS, "sloth_mode", "sloth_objective"))

PAGES = ((14.4, HOUR, 5 * MINUTE), (6.0, 6 * HOUR, 30 * MINUTE))
TICKETS = ((3.0, DAY, 2 * HOUR), (1.0, 3 * DAY, 6 * HOUR))
"""Burn rate over a long window and, so that an alert ends with its trouble, over a short one."""

CAUSE = "latency"


def groups(settings: Settings) -> list[Group]:
    """Recording rules, and a burn rate alert for pages and one for tickets."""
    fast = EDGE_BUCKETS.select(le=f"~{spellings(settings.threshold)}")
    facts = {
        OBJECTIVE: f"{settings.objective:g}",
        BUDGET: f"{settings.budget:g}",
        DAYS: f"{PERIOD / DAY:g}",
    }
    meta = [
        *(Record(metric, f"{TOTAL} * 0 + {value}") for metric, value in facts.items()),
        Record(BURN_RATE, f"{_ratio(5 * MINUTE)} / {settings.budget:g}"),
        Record(PERIOD_BURN_RATE, f"{_ratio(PERIOD)} / {settings.budget:g}"),
        Record(REMAINING, f"1 - {PERIOD_BURN_RATE}"),
        Record(
            INFO,
            f"{TOTAL} * 0 + 1",
            {"sloth_mode": "vipscope", "sloth_objective": f"{settings.objective * 100:g}"},
        ),
    ]
    ratios = [
        Record(TOTAL, _as_sloth(f"sum without (le) ({EDGE_BUCKETS.select(le='+Inf')})")),
        Record(FAST, _as_sloth(f"sum without (le) ({fast})")),
        *(_error_ratio(window, settings) for window in WINDOWS if window != PERIOD),
    ]
    period = [
        *(
            Record(hourly, f"avg_over_time({each}[{settings.span(HOUR)}])")
            for each, hourly in HOURLY.items()
        ),
        _error_ratio(PERIOD, settings),
    ]
    return [
        Group("vipscope-slo", ratios, LEISURELY),
        Group("vipscope-slo-period", period, SELDOM),
        Group("vipscope-slo-meta", meta, LEISURELY),
        Group("vipscope-slo-alerts", alerts(settings)),
    ]


def alerts(settings: Settings) -> list[Alert]:
    """Budget burnt too fast, by severity; and histograms that cannot tell."""
    caller = '{{ or $labels.source "anybody" }}'

    def burn(severity: Severity, rates: Sequence[tuple[float, float, float]]) -> Alert:
        slowest, longest, _ = rates[-1]
        return Alert(
            name="VipscopeLatencyBudgetBurn",
            severity=severity,
            cause=CAUSE,
            expr="\nor\n".join(_burning(*each, settings) for each in rates),
            summary=f"{caller} gets slow answers from {{{{ $labels.destination }}}}.",
            description=(
                f"{{{{ $value | humanizePercentage }}}} of the requests from {caller} to "
                "{{ $labels.destination }}, as {{ $labels.latency_source }} measures them, took "
                f"more than {settings.threshold * 1000:g} ms. Only {settings.budget * 100:g} % may:"
                f" like this the budget of {PERIOD / DAY:g} days lasts {PERIOD / DAY / slowest:.3g}"
                " days at most."
            ),
            dashboard=links.LATENCY,
            lasting=2 * MINUTE if longest <= 6 * HOUR else 15 * MINUTE,
        )

    return [
        burn("critical", PAGES),
        burn("warning", TICKETS),
        Alert(
            name="VipscopeThresholdIsNoBucket",
            severity="info",
            cause="configuration",
            expr=f"count by (cluster, latency_source) ({TOTAL} unless {FAST})",
            summary="The SLO cannot be judged for {{ $labels.latency_source }}.",
            description=(
                f"{{{{ $value }}}} edges of {{{{ $labels.latency_source }}}} have a histogram "
                f"without a bucket bound at {settings.threshold:g} s."
            ),
            dashboard=links.LATENCY,
            lasting=15 * MINUTE,
        ),
    ]


def _as_sloth(expr: str) -> str:
    """`expr` with Sloth's labels: made of the edge's, and without a slash before an empty one."""
    service = (
        f'label_replace(label_join({expr}, "sloth_service", "/", "destination_namespace",'
        ' "destination"), "sloth_service", "$1", "sloth_service", "/(.*)")'
    )
    slo = (
        f'label_replace(label_join({service}, "sloth_slo", "-", "latency_source", "source"),'
        ' "sloth_slo", "latency-$1", "sloth_slo", "(.*)")'
    )
    return f'label_join({slo}, "sloth_id", "-", "sloth_service", "sloth_slo")'


def _error_ratio(window: float, settings: Settings) -> Record:
    fast, total = (_average(each, window, settings) for each in (FAST, TOTAL))
    return Record(
        ERROR_RATIO[window],
        f"clamp_min(1 - {fast} / ({total} > 0), 0)",
        {"sloth_window": duration(window)},
    )


def _average(rate: Metric, window: float, settings: Settings) -> str:
    span = settings.span(window)
    if window == WINDOWS[0]:  # that of the rates themselves
        return str(rate)
    if window == PERIOD:  # of a month every hour will do, but not every point
        return f"avg_over_time({HOURLY[rate]}[{span}:{settings.span(HOUR)}])"
    return f"avg_over_time({rate}[{span}])"


def _ratio(window: float) -> str:
    return f"sum without (sloth_window) ({ERROR_RATIO[window]})"


def _burning(rate: float, long: float, short: float, settings: Settings) -> str:
    limit = f"{rate * settings.budget:g}"
    # A point that is not there counts, as one without requests: of what has just begun to be
    # measured, an average of the points alone would be a judgement upon a few requests.
    average = f"sum_over_time({TOTAL}[{settings.span(long)}]) / {long / LEISURELY:g}"
    return f"""
        (
          {_ratio(long)} > {limit}
          and {_ratio(short)} > {limit}
          and {average} >= {settings.minimum_requests:g}
        )
        """
