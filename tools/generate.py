"""`make generate`: write what is derived from the code, so that no document can drift from it.

exporter/METRICS.md comes from the catalogue and the flags in docs/flags.md from the settings.
Excerpts of /metrics and of what the other commands print come from golden files, which are what
vipscope says of a captured node. README.md's alerts come from the rules, and its costs from what
the bench has written into docs/cost.md.
Rules, alerts, examples and dashboards are rendered as `python -m alerts` and `python -m dashboards`
do; see `chart` for helm/vipscope.
"""

from __future__ import annotations

import argparse
import itertools
import re
from pathlib import Path

import alerts.__main__ as rules
import dashboards.__main__ as dashboards
from alerts.render import groups
from alerts.rule import Alert
from alerts.settings import Settings as RuleSettings
from tools import chart
from vipscope import settings
from vipscope.metrics import CATALOGUE, PROXY_MODE, RULES, SERVICE_RULE_DEPTH, Metric

ROOT = Path(__file__).parents[1]
METRICS = ROOT / "exporter" / "METRICS.md"
README = ROOT / "README.md"
FLAGS = ROOT / "docs" / "flags.md"
COMMANDS = ROOT / "docs" / "commands.md"
COST = ROOT / "docs" / "cost.md"
GOLDEN = ROOT / "tests" / "golden" / "iptables.prom"
TRACE = ROOT / "tests" / "golden" / "trace.txt"
DOCTOR = ROOT / "tests" / "golden" / "doctor.txt"

SHOWN = (
    PROXY_MODE.select(mode="iptables"),
    RULES.select(family="ipv4", table="nat"),
    SERVICE_RULE_DEPTH.select(family="ipv4"),
)
"""What README.md shows of the golden file: a few lines that say much."""

LAST_COST = "the prober, one target"
"""How the last row of docs/cost.md begins that README.md shows, with all before it."""

HEAD = """\
# Metrics

Generated from the catalogue, `vipscope/metrics.py`, by `make generate`: edit that.

A *stable* metric keeps its name, labels and meaning until the next major version; an
*experimental* one may change with any version, and the changelog says so.
"""


def metrics_page() -> str:
    """METRICS.md: a table a section, in the order of the catalogue."""
    parts = [HEAD]
    for section, metrics in itertools.groupby(CATALOGUE, key=lambda metric: metric.section):
        rows = "".join(map(_metric_row, metrics))
        parts.append(
            f"## {section}\n\n| metric | type | labels | role | stability | meaning |\n"
            f"|---|---|---|---|---|---|\n{rows}"
        )
    return "\n".join(parts)


def _metric_row(metric: Metric) -> str:
    labels = ", ".join(metric.labels) or "-"
    return (
        f"| `{metric.name}` | {metric.kind} | {labels} | {metric.role} | {metric.stability} "
        f"| {_cell(metric.help)} |\n"
    )


def flags_table(parser: argparse.ArgumentParser) -> str:
    """The table of all flags, their variables and defaults, from the command line's own parser."""
    rows = []
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to ask
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):  # noqa: SLF001
            continue
        if not action.option_strings:
            continue
        flag = max(action.option_strings, key=len).replace("--no-", "--[no-]")
        name = settings.environment_name(flag.replace("[no-]", "").removeprefix("--"))
        text, _, default = (action.help or "").replace("%%", "%").partition(" (default: ")
        rows.append(f"| `{flag}` | `{name}` | {_cell(default[:-1])} | {_cell(text)} |\n")
    return "| flag | variable | default | |\n|---|---|---|---|\n" + "".join(rows)


def excerpt() -> str:
    """The samples of the golden file that SHOWN selects, as Markdown."""
    lines = [
        line
        for selector in SHOWN
        for line in GOLDEN.read_text().splitlines()
        if _is_selected(line, selector)
    ]
    return "```\n" + "\n".join(lines) + "\n```\n"


def _is_selected(line: str, selector: str) -> bool:
    name, _, matchers = selector.rstrip("}").partition("{")
    return re.split(r"[{ ]", line)[0] == name and all(each in line for each in matchers.split(","))


def alerts_table() -> str:
    """A row for each subject: its alerts with their severities, each leading to its runbook."""
    rows = []
    for found in groups(RuleSettings()).values():
        for group in found:
            severities: dict[str, list[str]] = {}
            for rule in group.rules:
                if isinstance(rule, Alert):
                    severities.setdefault(rule.name, []).append(rule.severity)
            if severities:
                subject = group.name.removeprefix("vipscope-").removesuffix("-alerts")
                links = (
                    f"[{name}](alerts/RUNBOOKS.md#{name.lower()}) ({', '.join(each)})"
                    for name, each in severities.items()
                )
                rows.append(f"| {subject} | {', '.join(links)} |\n")
    return "| about | alerts |\n|---|---|\n" + "".join(rows)


def costs() -> str:
    """The rows of docs/cost.md up to LAST_COST, and the machine they are of."""
    lines = COST.read_text().splitlines(keepends=True)
    begin, end = lines.index("<!-- cost begin -->\n"), lines.index("<!-- cost end -->\n")
    (last,) = (at for at, line in enumerate(lines) if line.startswith(f"| {LAST_COST}"))
    return "".join([*lines[begin + 1 : last + 1], "\n", lines[end - 1]])


def documents() -> dict[Path, str]:
    """File -> text with its generated regions renewed."""
    regions = {
        README: {
            "trace": f"```\n$ vipscope trace ns-0/svc-0\n{TRACE.read_text()}```\n",
            "excerpt": excerpt(),
            "alerts": alerts_table(),
            "costs": costs(),
        },
        FLAGS: {
            "flags": flags_table(settings.parser()),
            "trace flags": flags_table(settings.trace_parser()),
        },
        COMMANDS: {"doctor": f"```\n$ vipscope doctor\n{DOCTOR.read_text()}```\n"},
    }
    texts = {}
    for path, contents in regions.items():
        text = path.read_text()
        for name, content in contents.items():
            text = replace_region(text, name, content)
        texts[path] = text
    return texts


def replace_region(text: str, name: str, content: str) -> str:
    """`text` with `content` between the comments `name begin` and `name end`.

    Raises ValueError when `text` does not have exactly one such region.
    """
    begin, end = f"<!-- {name} begin -->\n", f"<!-- {name} end -->\n"
    renewed, found = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}",
        lambda _: f"{begin}{content}{end}",
        text,
        flags=re.DOTALL,
    )
    if found != 1:
        raise ValueError(f"{found} regions {name!r}, not 1")
    return renewed


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write all generated files."""
    METRICS.write_text(metrics_page())
    for path, text in documents().items():
        path.write_text(text)
    rules.COMMAND.write(RuleSettings())
    dashboards.COMMAND.write(RuleSettings())
    chart.write()


if __name__ == "__main__":
    main()
