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


@dataclass(frozen=True)
class Association:
    """The series of one level, node or cluster."""

    level: str
    labels: tuple[str, ...]
    rules: Metric
    growth_per_day: Metric

    def _series(self, name: str, text: str) -> Metric:
        return series(f"{self.level}:vipscope_{name}", text, (*self.labels, "latency_source"))

    @property
    def _load(self) -> Metric:
        return self._series("requests:paired", "Load where rules and p99 are known.")

    @property
    def _rules(self) -> Metric:
        return self._series("rules:paired", "Rules at these times.")

    @property
    def _latency(self) -> Metric:
        return self._series("latency_seconds:paired", "p99 at these times.")

    @property
    def rules_latency(self) -> Pair:
        """Rules and p99."""
        product = self._series("rules_latency:product", "Rules times p99.")
        return Pair(self._rules, self._latency, product)

    @property
    def rules_load(self) -> Pair:
        """Rules and request rate."""
        product = self._series("rules_requests:product", "Rules times requests per second.")
        return Pair(self._rules, self._load, product)

    @property
    def load_latency(self) -> Pair:
        """Request rate and p99."""
        product = self._series("requests_latency:product", "Requests per second times p99.")
        return Pair(self._load, self._latency, product)

    @property
    def correlation(self) -> Metric:
        """Of rules and p99."""
        return self._series("rules_latency:correlation", "Pearson's r of rules and p99.")

    @property
    def correlation_rules_load(self) -> Metric:
        """Of rules and request rate."""
        return self._series("rules_requests:correlation", "Pearson's r of rules and request rate.")

    @property
    def correlation_load_latency(self) -> Metric:
        """Of request rate and p99."""
        return self._series("requests_latency:correlation", "Pearson's r of request rate and p99.")

    @property
    def partial(self) -> Metric:
        """Of rules and p99, given the request rate."""
        return self._series(
            "rules_latency:partial_correlation",
            "Correlation of rules and p99 that the request rate does not explain.",
        )

    @property
    def slope(self) -> Metric:
        """In ms per 10,000 rules."""
        return self._series(
            "rules_latency:slope_ms_per_10k_rules", "Milliseconds that p99 gains by 10,000 rules."
        )

    @property
    def breach_by_latency(self) -> Metric:
        """Seconds."""
        return self._series(
            "latency_seconds:time_to_breach",
            "Seconds until p99 reaches the threshold, if it goes on as in the window.",
        )

    @property
    def breach_by_rules(self) -> Metric:
        """Seconds."""
        return self._series(
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
        rules, p99, load = self._rules, self._latency, self._load
        match, source = on(*self.labels), "group_left ()"
        known = f"({finite(latency.P99[self.level])} and {match} {finite(self.rules)})"
        # What a node is asked to do is its new connections; a source's own rate where the rules do
        # not count them.
        connections = (
            f"sum {by(*self.labels)} (rate({m.NEW_CONNECTIONS}[{settings.span(LOAD_WINDOW)}]))"
        )
        asked = f"""
            ({known} * 0 + {match} {source} {connections})
            or ({known} * 0 + {finite(latency.REQUESTS[self.level])})
            """
        room = f"({settings.threshold:g} - {latency.P99[self.level]} > 0)"
        rising = f"(deriv({latency.P99[self.level]}[{window}]) > 0)"
        per_rule = f"{self.slope} / {RULES_QUOTED * MILLISECONDS}"
        per_second = f"({self.growth_per_day} / {DAY:.0f})"
        predicted = f"{room} / ({per_rule} * {match} {source} {per_second} > 0)"
        pairs = (self.rules_latency, self.rules_load, self.load_latency)
        correlations = (
            self.correlation,
            self.correlation_rules_load,
            self.correlation_load_latency,
        )
        return Group(
            f"vipscope-association-{self.level}",
            [
                Record(load, asked),
                Record(p99, f"{latency.P99[self.level]} and {load}"),
                Record(rules, f"{load} * 0 + {match} {source} {self.rules}"),
                *(Record(pair.xy, f"{pair.x} * {pair.y}") for pair in pairs),
                *(
                    Record(series, pair.correlation(window, points))
                    for series, pair in zip(correlations, pairs, strict=True)
                ),
                Record(self.partial, self._partial()),
                Record(
                    self.slope,
                    f"({self.rules_latency.slope(window, points)}) * {RULES_QUOTED * MILLISECONDS}",
                ),
                Record(
                    self.breach_by_latency,
                    f"{room} / {rising}\nand {_enough(p99, window, points)}",
                ),
                Record(self.breach_by_rules, predicted),
            ],
            LEISURELY,
        )

    def _partial(self) -> str:
        """(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)).

        Absent where the load is all but a multiple of one of them: then nothing is left to tell.
        """
        xy, xz, yz = self.correlation, self.correlation_rules_load, self.correlation_load_latency
        left = [f"(1 - {each} ^ 2 > {VARIES:g})" for each in (xz, yz)]
        return f"clamp(({xy} - {xz} * {yz}) / sqrt({' * '.join(left)}), -1, 1)"


BY_NODE = Association("node", NODE, growth.NODE_RULES, growth.GROWTH_PER_DAY)
BY_CLUSTER = Association("cluster", CLUSTER, growth.CLUSTER_RULES, growth.CLUSTER_GROWTH_PER_DAY)


def groups(settings: Settings) -> list[Group]:
    """A group a level: sources that know no node are set beside the cluster's rules."""
    return [each.group(settings) for each in (BY_NODE, BY_CLUSTER)]
