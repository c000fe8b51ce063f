"""How strongly latency goes together with the number of rules, and where that leads.

Association, not cause: load moves both, so the partial correlation given the request rate stands
beside the plain one, and `attribution` says what else would explain the latency.

The moments of a window come from `avg_over_time` over points that were recorded where all of them
exist: then cov(x, y) = avg(xy) - avg(x) avg(y) is exact, whatever is missing. Nothing is said where
a series does not vary or where a window has too few points.
"""

from __future__ import annotations

from dataclasses import dataclass

from alerts import growth, latency
from alerts.rule import CLUSTER, NODE, Group, Record, by, finite, on, series
from alerts.settings import DAY, LEISURELY, MINUTE, Settings
from vipscope import metrics as m
from vipscope.metrics import Metric

VARIES = 1e-6
"""Standard deviation, relative to the mean, from which on a series varies. Below, the difference in
the covariance is rounding."""
RULES_QUOTED = 10_000
"""The slope is quoted in milliseconds for so many rules."""
MILLISECONDS = 1000
LOAD_WINDOW = 5 * MINUTE


@dataclass(frozen=True)
class Pair:
    """Two series of the same labels that exist at the same times, and their product."""

    x: Metric
    y: Metric
    xy: Metric

    def covariance(self, window: str) -> str:
        """Of the points in the window."""
        x, y, xy = (f"avg_over_time({each}[{window}])" for each in (self.x, self.y, self.xy))
        return f"({xy} - {x} * {y})"

    def correlation(self, window: str, points: int) -> str:
        """Pearson's r; absent where either does not vary or the points are too few."""
        deviations = f"({_deviation(self.x, window)} * {_deviation(self.y, window)})"
        return f"""
            clamp({self.covariance(window)} / {deviations}, -1, 1)
            and {_enough(self.y, window, points)}
            """

    def slope(self, window: str, points: int) -> str:
        """What y gains by one more of x, by least squares; absent as `correlation` is."""
        return f"""
            {self.covariance(window)} / {_deviation(self.x, window)} ^ 2
            and {_deviation(self.y, window)}
            and {_enough(self.y, window, points)}
            """


def _deviation(metric: Metric, window: str) -> str:
    deviation = f"stddev_over_time({metric}[{window}])"
    return f"({deviation} > {VARIES:g} * abs(avg_over_time({metric}[{window}])))"


def _enough(metric: Metric, window: str, points: int) -> str:
    return f"count_over_time({metric}[{window}]) >= {points}"


class Association:
    """Rules and p99 of one level, node or cluster: its series, and the rules that record them."""

    def __init__(
        self, level: str, labels: tuple[str, ...], rules: Metric, growth_per_day: Metric
    ) -> None:
        def of(name: str, text: str) -> Metric:
            return series(f"{level}:vipscope_{name}", text, (*labels, "latency_source"))

        self.level = level
        self._labels = labels
        self._rules = rules
        self._growth_per_day = growth_per_day

        x = of("rules:paired", "Rules where p99 and load are known.")
        y = of("latency_seconds:paired", "p99 at these times.")
        z = of("requests:paired", "Load, as requests per second, at these times.")
        self.rules_latency = Pair(x, y, of("rules_latency:product", "Rules times p99."))
        self.rules_load = Pair(x, z, of("rules_requests:product", "Rules times load."))
        self.load_latency = Pair(z, y, of("requests_latency:product", "Load times p99."))

        self.correlation = of("rules_latency:correlation", "Pearson's r of rules and p99.")
        self.correlation_rules_load = of(
            "rules_requests:correlation", "Pearson's r of rules and load."
        )
        self.correlation_load_latency = of(
            "requests_latency:correlation", "Pearson's r of load and p99."
        )
        self.partial = of(
            "rules_latency:partial_correlation",
            "Correlation of rules and p99 that the load does not explain.",
        )
        self.slope = of(
            "rules_latency:slope_ms_per_10k_rules", "Milliseconds that p99 gains by 10,000 rules."
        )
        self.breach_by_latency = of(
            "latency_seconds:time_to_breach",
            "Seconds until p99 reaches the threshold, if it goes on as in the window.",
        )
        self.breach_by_rules = of(
            "rules:time_to_breach",
            "Seconds until p99 reaches the threshold, by the growth of the rules and the slope.",
        )

    def strong(self, settings: Settings) -> str:
        """The correlation where it is strong: given the load, unless that does not vary."""
        plain = f"{self.correlation} unless {self.correlation_load_latency}"
        return f"(({self.partial} or ({plain})) > {settings.association_strong:g})"

    def group(self, settings: Settings) -> Group:
        """All of them, in the order in which they depend on each other."""
        window, points = settings.span(settings.association_window), settings.association_points
        pairs = {
            self.rules_latency: self.correlation,
            self.rules_load: self.correlation_rules_load,
            self.load_latency: self.correlation_load_latency,
        }
        slope = self.rules_latency.slope(window, points)
        return Group(
            f"vipscope-association-{self.level}",
            [
                *self._points(settings),
                *(Record(pair.xy, f"{pair.x} * {pair.y}") for pair in pairs),
                *(Record(r, pair.correlation(window, points)) for pair, r in pairs.items()),
                Record(self.partial, self._partial()),
                Record(self.slope, f"({slope}) * {RULES_QUOTED * MILLISECONDS}"),
                *self._breaches(settings),
            ],
            LEISURELY,
        )

    def _points(self, settings: Settings) -> list[Record]:
        """Load, p99 and rules at the times at which all three are known."""
        p99, match = latency.P99[self.level], f"{on(*self._labels)} group_left ()"
        known = f"({finite(p99)} and {on(*self._labels)} {finite(self._rules)})"
        # What a node is asked to do is its new connections; a source's own rate where the rules do
        # not count them.
        connections = (
            f"sum {by(*self._labels)} (rate({m.NEW_CONNECTIONS}[{settings.span(LOAD_WINDOW)}]))"
        )
        load = f"""
            ({known} * 0 + {match} {connections})
            or ({known} * 0 + {finite(latency.REQUESTS[self.level])})
            """
        rules, load_series = self.rules_load.x, self.rules_load.y
        return [
            Record(load_series, load),
            Record(self.rules_latency.y, f"{p99} and {load_series}"),
            Record(rules, f"{load_series} * 0 + {match} {self._rules}"),
        ]

    def _partial(self) -> str:
        """(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)).

        Absent where the load is all but a multiple of one of them: then nothing is left to tell.
        """
        xy, xz, yz = self.correlation, self.correlation_rules_load, self.correlation_load_latency
        left = [f"(1 - {each} ^ 2 > {VARIES:g})" for each in (xz, yz)]
        return f"clamp(({xy} - {xz} * {yz}) / sqrt({' * '.join(left)}), -1, 1)"

    def _breaches(self, settings: Settings) -> list[Record]:
        """By p99's own rise, and by that of the rules; absent where there is none to come."""
        p99, window = latency.P99[self.level], settings.span(settings.association_window)
        room = f"({settings.threshold:g} - {p99} > 0)"
        enough = _enough(self.rules_latency.y, window, settings.association_points)
        per_rule = f"{self.slope} / {RULES_QUOTED * MILLISECONDS}"
        per_second = f"({self._growth_per_day} / {DAY:.0f})"
        by_rules = f"{per_rule} * {on(*self._labels)} group_left () {per_second}"
        return [
            Record(self.breach_by_latency, f"{room} / (deriv({p99}[{window}]) > 0) and {enough}"),
            Record(self.breach_by_rules, f"{room} / ({by_rules} > 0)"),
        ]


BY_NODE = Association("node", NODE, growth.NODE_RULES, growth.GROWTH_PER_DAY)
BY_CLUSTER = Association("cluster", CLUSTER, growth.CLUSTER_RULES, growth.CLUSTER_GROWTH_PER_DAY)


def groups(settings: Settings) -> list[Group]:
    """A group a level: sources that know no node are set beside the cluster's rules."""
    return [each.group(settings) for each in (BY_NODE, BY_CLUSTER)]
