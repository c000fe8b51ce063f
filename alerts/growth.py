"""Rules of each node, and how fast they grow."""

from __future__ import annotations

from alerts.rule import CLUSTER, NODE, Group, Record, by, series
from alerts.settings import DAY, HOUR, LEISURELY, Settings
from vipscope import metrics as m

NODE_RULES = series(
    "node:vipscope_kube_proxy_rules:sum", "Rules of kube-proxy on a node, all tables.", NODE
)
CLUSTER_RULES = series(
    "cluster:vipscope_kube_proxy_rules:avg", "The same, on average over the nodes.", CLUSTER
)
OWNER_RULES = series(
    "node_owner:vipscope_rules:sum", "All rules of a node by owner.", (*NODE, "owner")
)
GROWTH_PER_HOUR = series(
    "node:vipscope_kube_proxy_rules:growth_per_hour",
    "Rules that a node gains in an hour, by the line through the last hour.",
    NODE,
)
GROWTH_PER_DAY = series(
    "node:vipscope_kube_proxy_rules:growth_per_day",
    "Rules that a node gains in a day, by the line through the last day.",
    NODE,
)
CLUSTER_GROWTH_PER_DAY = series(
    "cluster:vipscope_kube_proxy_rules:growth_per_day", "The same, averaged over nodes.", CLUSTER
)
PROXY_MODES = series(
    "cluster_mode:vipscope_proxy_mode:sum", "Nodes by kube-proxy's mode.", (*CLUSTER, "mode")
)


def groups(settings: Settings) -> list[Group]:
    """One group."""

    def growth(unit: float) -> str:
        # A few points would make a line of any slope.
        window = f"{NODE_RULES}[{settings.span(unit)}]"
        enough = f"count_over_time({window}) >= {settings.association_points}"
        return f"deriv({window}) * {unit:.0f}\nand {enough}"

    rules = [
        Record(NODE_RULES, f"sum {by(*NODE)} ({m.RULES.select(owner='kube-proxy')})"),
        Record(CLUSTER_RULES, f"avg {by(*CLUSTER)} ({NODE_RULES})"),
        Record(OWNER_RULES, f"sum {by(*NODE, 'owner')} ({m.RULES})"),
        Record(GROWTH_PER_HOUR, growth(HOUR)),
        Record(GROWTH_PER_DAY, growth(DAY)),
        Record(CLUSTER_GROWTH_PER_DAY, f"avg {by(*CLUSTER)} ({GROWTH_PER_DAY})"),
        Record(PROXY_MODES, f"sum {by(*CLUSTER, 'mode')} ({m.PROXY_MODE})"),
    ]
    return [Group("vipscope-growth", rules, LEISURELY)]
