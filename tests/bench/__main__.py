"""Run the benches and print one table: `python -m tests.bench [--write] [NAME ...]`.

With `--write` the table goes into docs/cost.md, and `make generate` puts some of it into README.md.
Nothing here asserts: a bound that is not met is a row that says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tests.bench import (
    abuse,
    dashboards,
    drift,
    exporter,
    ipvs,
    kube,
    machine,
    nftables,
    node,
    probe,
    slope,
    start,
    story,
    xtables,
)
from tests.bench.scale import report
from tests.dashboards.asking import SECONDS
from tools.generate import COST, replace_region

HEAD = "| what | measured | other tool | ratio | bound | met |\n|---|---|---|---|---|---|\n"
MEBIBYTE = 1 << 20


class Row(NamedTuple):
    """A line of the table."""

    what: str
    value: float
    """What is held against the bound."""
    bound: float
    show: Callable[[float], str]
    """Prints `value` and `bound`."""
    measured: str = ""
    """Where the bound is for a ratio: what was measured of vipscope."""
    tool: str = ""
    """The other tool and what it takes."""
    ratio: float | None = None
    """To the other tool, or to something that is named in `what`."""

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:.2g}"
        cells = (
            self.what,
            self.measured or self.show(self.value),
            self.tool,
            ratio,
            self.show(self.bound),
            "yes" if self.value <= self.bound else "**no**",
        )
        return f"| {' | '.join(cells)} |\n"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _microseconds(value: float) -> str:
    return f"{value * 1e6:.0f} µs"


def _cpu(value: float) -> str:
    return f"{_seconds(value)} CPU"


def _times(value: float) -> str:
    return f"{value:.2g}"


def _percent(value: float) -> str:
    return f"{value * 100:.2g} %"


def _share(value: float) -> str:
    return f"{value * 100:.2g} % of a core"


def _mebibytes(value: float) -> str:
    return f"{value / MEBIBYTE:.0f} MiB"


def _against(what: str, ours: float, tool: str, theirs: float, ratio: float, bound: float) -> Row:
    """A row whose bound is for the ratio to the other tool."""
    return Row(what, ratio, bound, _times, _cpu(ours), f"{tool}: {_cpu(theirs)}", ratio)


def nftables_rows() -> list[Row]:
    """Following nf_tables, beside listing it."""
    found = nftables.measure()
    save = found["iptables_nft_save_cpu_seconds"]
    save_text = f"iptables-nft-save: {_cpu(save)}"
    listing = found["nft_json_cpu_seconds"]
    listing_text = f"nft -j list ruleset: {_cpu(listing)}"
    unchanged, change = found["unchanged_cpu_seconds"], found["iptables_change_cpu_seconds"]
    native = found["nftables_change_cpu_seconds"]
    return [
        _against(
            f"first full count, nft backend, {found['rules']:,} rules",
            found["first_count_cpu_seconds"], "iptables-nft-save", save, found["ratio"], 0.5,
        ),
        Row("nothing changed", unchanged, 0.001, _cpu, "", save_text, unchanged / save),
        Row(
            "one endpoint changed, mode iptables", change, 0.06, _cpu, "", save_text, change / save
        ),
        Row(
            "the same, until it is in `/metrics` (longest)",
            found["iptables_change_visible_seconds"], 2, _seconds,
        ),
        Row(
            "one endpoint changed, mode nftables", native, 0.003, _cpu, "", listing_text,
            native / listing,
        ),
        Row(
            "the same, until it is in `/metrics` (longest)",
            found["nftables_change_visible_seconds"], 2, _seconds,
        ),
    ]  # fmt: skip


def xtables_rows() -> list[Row]:
    """Counting iptables-legacy."""
    found = xtables.measure()
    kept = found["resident_after"] - found["resident_before"]
    return [
        _against(
            f"full count, legacy, {found['rules']:,} rules",
            found["collector_cpu_seconds"], "iptables-legacy-save",
            found["iptables_legacy_save_cpu_seconds"], found["ratio"], 1,
        ),
        Row(
            "memory kept after counts of "
            f"{_mebibytes(found['resident_peak'] - found['resident_before'])}",
            kept, 10 * MEBIBYTE, _mebibytes,
        ),
        Row(
            "nothing changed, legacy", found["repeated_read_cpu_seconds"], 0.001, _cpu, "",
            f"iptables-legacy-save: {_cpu(found['iptables_legacy_save_cpu_seconds'])}",
            found["repeated_read_cpu_seconds"] / found["iptables_legacy_save_cpu_seconds"],
        ),
    ]  # fmt: skip


def ipvs_rows() -> list[Row]:
    """Reading IPVS, in User Mode Linux."""
    found = ipvs.measure()
    what = f"IPVS, {found['virtual_servers']:,} of {found['real_servers']}, in User Mode Linux"
    return [
        _against(
            what, found["collector_cpu_seconds"], "ipvsadm -Sn", found["ipvsadm_cpu_seconds"],
            found["ratio"], 1,
        )
    ]  # fmt: skip


def exporter_rows() -> list[Row]:
    """The whole process."""
    found = exporter.measure()
    thousand, all_changes = (
        found["resident_after_1000_changes"],
        found["resident_after_10000_changes"],
    )
    few = _seconds(found["few_rules_scrape_p99_seconds"])
    return [
        Row(
            f"`/metrics`, {exporter.SCRAPERS} scrapers at once, p99 (p50 "
            f"{_seconds(found['scrape_p50_seconds'])})",
            found["scrape_p99_seconds"], 0.02, _seconds,
        ),
        Row(
            "the same, to that at 2,000 rules", found["scrape_p99_ratio"], 1.5, _times,
            _seconds(found["scrape_p99_seconds"]), f"at 2,000 rules: {few}",
            found["scrape_p99_ratio"],
        ),
        Row(
            f"the page at `/`, longest of {exporter.LOOKS}", found["page_seconds"], 0.2, _seconds,
        ),
        Row(
            "the same, laid out by Chromium besides",
            found["page_seconds"] + found["page_shown_seconds"], 0.2, _seconds,
        ),
        Row(
            "event loop, longest stall", found["stall_seconds"], 0.05, _seconds, "",
            f"a loop with nothing to do: {_seconds(found['idle_stall_seconds'])}",
        ),
        Row("resident memory, peak", found["resident_peak"], 120 * MEBIBYTE, _mebibytes),
        Row(
            "growth from 1,000 to 10,000 changes", max(0, all_changes - thousand), MEBIBYTE,
            _mebibytes,
        ),
        Row("at rest, scraped every 15 s", found["at_rest_core_share"], 0.005, _share),
    ]  # fmt: skip


def drift_rows() -> list[Row]:
    """Following the API and comparing it with the kernel."""
    api, compared, process = kube.measure(), drift.measure()["iptables"], node.measure()
    endpoints = f"{drift.SERVICES:,} Services, {drift.SERVICES * drift.ENDPOINTS:,} endpoints"
    event = api["event_cpu_seconds"] + compared["slice_event"]
    return [
        Row(
            f"first list and comparison, {endpoints}",
            api["list_cpu_seconds"] + compared["first_join"], 2.5, _cpu,
        ),
        Row(
            f"one event of a slice of {drift.SLICE_ENDPOINTS} endpoints, compared", event, 0.001,
            _cpu,
        ),
        Row("1,000 such events", 1000 * event, 1.0, _cpu),
        Row(
            "resident memory of the node role with drift, peak", process["resident_peak"],
            200 * MEBIBYTE, _mebibytes,
        ),
    ]  # fmt: skip


def probe_rows() -> list[Row]:
    """Probing at the default settings."""
    found = probe.measure()
    what = "the prober, one target, its answers to another's probes included"
    return [Row(what, found["core_share"], 0.002, _share)]


def story_rows() -> list[Row]:
    """What 20,000 Services add to a handshake, beside what they add where rules are walked."""
    told = story.measure()
    growth = {mode: story.median_growth(points, "vip")[-1] for mode, points in told.items()}
    return [
        Row(
            f"what {story.SIZES[-1]:,} Services add to a handshake, {mode}",
            growth[mode] / growth[walked], bound, _times, _microseconds(growth[mode]),
            f"{walked}: {_microseconds(growth[walked])}", growth[mode] / growth[walked],
        )
        for mode, walked, bound in (
            ("nftables", story.IPTABLES, 0.05),
            (story.IPVS, story.IPTABLES_IN_UML, 0.25),  # in one kernel
        )
    ]  # fmt: skip


def slope_rows() -> list[Row]:
    """The slope that the rules record of a scraped exporter, beside raw measurements in its run."""
    rows = []
    for backend, (recorded, fitted) in slope.measure().items():
        off = abs(recorded / fitted - 1)
        rows.append(
            Row(
                f"slope of p99 over rules as the rules record it, {backend}", off, 0.15, _percent,
                f"{recorded:.3f} ms per 10,000 rules, {_percent(off)} off",
                f"a line through raw p99s: {fitted:.3f} ms", recorded / fitted,
            )
        )  # fmt: skip
    return rows


def start_rows() -> list[Row]:
    """The image, started as the chart starts it."""
    found = start.measure()
    what = "start of the node role in its container, few rules"
    return [
        Row(what, found["start_cpu_seconds"], 1.0, _cpu),
        Row("the same, resident memory, peak", found["resident_peak"], 60 * MEBIBYTE, _mebibytes),
    ]


def abuse_rows() -> list[Row]:
    """One client that behaves, while others do not."""
    found = abuse.measure()
    alone = f"undisturbed: {_seconds(found['undisturbed_p99_seconds'])}"
    grown = found["resident_after"] - found["resident_before"]
    return [
        *(
            Row(
                f"`/metrics` of one client, p99, beside {abuse.KINDS[kind]}",
                p99, 0.1, _seconds, "", alone, p99 / found["undisturbed_p99_seconds"],
            )
            for kind, p99 in found["p99_seconds"].items()
        ),
        Row("memory that all of these leave behind", max(0, grown), 16 * MEBIBYTE, _mebibytes),
    ]  # fmt: skip


def dashboards_rows() -> list[Row]:
    """What people who look at dashboards wait for."""
    found = dashboards.measure()
    return [
        Row(
            f"dashboards of {dashboards.NODES:,} nodes, longest of {found['queries']} queries",
            found["longest"], SECONDS, _seconds,
        ),
        Row(
            "the same, all queries of one dashboard, one after another",
            found["dashboard"], SECONDS, _seconds,
        ),
    ]  # fmt: skip


def scale_rows() -> list[Row]:
    """One Prometheus, and a fleet of exporters; docs/scale.md has more."""
    found = report.measure()
    last = found.loads[-1]
    what = f"Prometheus with {last.nodes:,} nodes"
    return [
        Row(f"{what}, memory", report.memory(found, last), 8 << 30, _mebibytes),
        Row(f"{what}, busiest rules, to their interval", report.busiest(last), 0.5, _times),
    ]


BENCHES: Mapping[str, Callable[[], list[Row]]] = {
    "nftables": nftables_rows,
    "xtables": xtables_rows,
    "exporter": exporter_rows,
    "ipvs": ipvs_rows,
    "drift": drift_rows,
    "probe": probe_rows,
    "story": story_rows,
    "slope": slope_rows,
    "start": start_rows,
    "abuse": abuse_rows,
    "dashboards": dashboards_rows,
    "scale": scale_rows,
}


LONG = ("dashboards", "scale")
"""Those that are only run when they are named: they take up to half an hour."""
WRITERS: Mapping[str, Callable[[], None]] = {"story": story.write, "scale": report.write}
"""What has a page of its own."""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}")
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"renew the pages: docs/cost.md without names, else those of {', '.join(WRITERS)}",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - BENCHES.keys():
        parser.error(f"no bench {', '.join(sorted(unknown))}")
    if arguments.write and not set(arguments.names) <= WRITERS.keys():
        parser.error(f"--write takes all benches, or of these: {', '.join(WRITERS)}")
    names = arguments.names or [name for name in BENCHES if name not in LONG]
    table = HEAD + "".join(str(row) for name in names for row in BENCHES[name]())
    size = f"{nftables.SERVICES:,} Services of {nftables.ENDPOINTS} endpoints."
    text = f"{table}\n{machine.describe()} {size}\n"
    print(text, end="")  # noqa: T201 - a command prints
    if arguments.write:
        for name in WRITERS.keys() & set(names):
            WRITERS[name]()
        if not arguments.names:
            COST.write_text(replace_region(COST.read_text(), "cost", text))


if __name__ == "__main__":
    main()
