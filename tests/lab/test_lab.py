"""Tests of the laboratory itself, against the kernels that it gives."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lab import counts, rulesets, strategies, uml
from tests.lab.foreign import foreign
from tests.lab.namespace import Backend, Family, Namespace, requirements, sweep
from tests.lab.remote import LabError
from tests.lab.rulesets import Endpoint, Service

CAPTURES = Path(__file__).parents[1] / "captures"
BACKENDS: tuple[Backend, ...] = ("nft", "legacy")
FAMILIES: tuple[Family, ...] = ("ipv4", "ipv6")

in_namespace = pytest.mark.skipif(bool(requirements()), reason="; ".join(requirements()))
in_uml = pytest.mark.skipif(uml.available() is not None, reason=uml.available() or "")


LEAVE_ONE_BEHIND = """
import os
from tests.lab.namespace import Namespace
namespace = Namespace().__enter__()
print(namespace.name, flush=True)
os._exit(0)
"""


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as fresh:
        yield fresh


def capture(name: str) -> str:
    content = (CAPTURES / name).read_bytes()
    return (gzip.decompress(content) if name.endswith(".gz") else content).decode()


def lines(text: str) -> list[str]:
    """Lines of iptables-save text but its comments, sorted: legacy orders tables its own way."""
    return sorted(line for line in text.splitlines() if not line.startswith("#"))


def rules(text: str) -> list[str]:
    """The same without what is not a rule, and without counters."""
    return sorted(re.findall(r"^(?:\[\d+:\d+\] )?(-A .*)$", text, re.MULTILINE))


def words(text: str) -> list[str]:
    """What an nft listing holds, however its elements are ordered and broken into lines."""
    return sorted(re.findall(r"[^\s,{}]+", text))


def captured_services(size: str, name: str) -> list[Service]:
    """The Services of the API's lists whose name matches, as the generator models them."""
    suffix = ".gz" if size else ""
    endpoints: dict[tuple[str, str], list[Endpoint]] = {}
    for item in json.loads(capture(f"api/{size}endpointslices.json{suffix}"))["items"]:
        owner = item["metadata"]["labels"].get("kubernetes.io/service-name", "")
        endpoints.setdefault((item["metadata"]["namespace"], owner), []).extend(
            Endpoint(endpoint["addresses"][0], port["port"], endpoint["nodeName"])
            for endpoint in item["endpoints"] or ()
            if "nodeName" in endpoint
            for port in item["ports"] or ()
        )
    return [
        Service(
            namespace=item["metadata"]["namespace"],
            name=item["metadata"]["name"],
            port_name=port["name"],
            protocol=port["protocol"].lower(),
            cluster_ip=item["spec"]["clusterIP"],
            port=port["port"],
            endpoints=tuple(endpoints[item["metadata"]["namespace"], item["metadata"]["name"]]),
        )
        for item in json.loads(capture(f"api/{size}services.json{suffix}"))["items"]
        if re.fullmatch(name, item["metadata"]["name"])
        for port in item["spec"]["ports"]
    ]


def interfaces() -> list[str]:
    return re.findall(r"(\S+):", Path("/proc/net/dev").read_text())


def die() -> None:
    os._exit(3)


def fail_inside() -> None:
    raise LookupError("KUBE-SVC-X")


def counted(namespace: Namespace, backend: Backend, family: Family) -> counts.TableRules:
    return counts.iptables_save(namespace.save(backend, family))


# --- namespaces ----------------------------------------------------------------------------------


@in_namespace
def test_a_namespace_has_a_loopback_device_of_its_own_and_an_empty_ruleset(
    namespace: Namespace,
) -> None:
    assert "UP" in namespace.run("ip", "-brief", "link", "show", "lo")
    assert namespace.run("nft", "list", "ruleset") == ""


@in_namespace
def test_a_failing_command_raises_with_its_stderr(namespace: Namespace) -> None:
    with pytest.raises(LabError, match="No such file or directory"):
        namespace.run("nft", "delete", "table", "ip", "absent")


@in_namespace
def test_a_call_runs_inside_and_its_result_comes_back(namespace: Namespace) -> None:
    current = Path("/proc/self/ns/net")
    assert namespace.call(current.stat).st_ino == namespace.path.stat().st_ino
    assert current.stat().st_ino != namespace.path.stat().st_ino
    assert namespace.call(interfaces) == ["lo"]


@in_namespace
def test_what_a_call_raises_is_raised_again_with_its_traceback(namespace: Namespace) -> None:
    with pytest.raises(LookupError, match="KUBE-SVC-X") as caught:
        namespace.call(fail_inside)
    assert "in fail_inside" in caught.value.__notes__[0]


@in_namespace
def test_a_call_that_dies_is_reported(namespace: Namespace) -> None:
    with pytest.raises(LabError, match="exit code 3"):
        namespace.call(die)


@in_namespace
def test_a_failing_test_leaves_no_namespace_behind() -> None:
    with pytest.raises(LookupError), Namespace() as namespace:
        namespace.call(fail_inside)
    assert not namespace.path.exists()


@in_namespace
def test_processes_inside_end_with_the_namespace() -> None:
    with Namespace() as namespace:
        sleeper = namespace.popen("sleep", "1000")
    assert sleeper.poll() is not None
    assert not namespace.path.exists()


@in_namespace
def test_sweeping_removes_the_namespaces_of_dead_processes_only(namespace: Namespace) -> None:
    leftover = subprocess.run(
        [sys.executable, "-c", LEAVE_ONE_BEHIND],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout.strip()
    assert leftover in sweep()
    assert not (namespace.path.parent / leftover).exists()
    assert namespace.path.exists()


@in_namespace
def test_conntrack_statistics_are_summed_over_the_cpus(namespace: Namespace) -> None:
    statistics = counts.conntrack_statistics(namespace.run("conntrack", "-S"))
    assert {"found", "insert_failed", "early_drop", "clash_resolve"} <= statistics.keys()
    assert counts.conntrack_statistics("cpu=0 found=1 drop=0\ncpu=1 found=2 drop=3\n") == {
        "found": 3,
        "drop": 3,
    }


# --- captures ------------------------------------------------------------------------------------


@in_namespace
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "family"),
    [("small.v4.save", "ipv4"), ("small.v6.save", "ipv6"), ("medium.v4.save.gz", "ipv4")],
)
def test_iptables_captures_load_unchanged(
    namespace: Namespace, name: str, family: Family, backend: Backend
) -> None:
    text = capture(f"iptables/{name}")
    namespace.restore(text, backend, family)
    assert lines(namespace.save(backend, family, counters=True)) == lines(text)
    namespace.restore(text, backend, family)  # the accounting objects are there by now


@in_namespace
@pytest.mark.parametrize("name", ["small.nft", "medium.nft.gz"])
def test_nftables_captures_load_unchanged(namespace: Namespace, name: str) -> None:
    text = capture(f"nftables/{name}")
    namespace.nft(text)
    assert words(namespace.run("nft", "list", "ruleset")) == words(text)


@in_namespace
def test_nft_and_iptables_count_the_same_rules(namespace: Namespace) -> None:
    text = capture("iptables/small.v4.save")
    namespace.restore(text)
    by_nft = counts.nft_json(namespace.run("nft", "-j", "list", "ruleset")).rules
    by_iptables = counts.iptables_save(text)
    assert by_nft == {
        ("ip", table, chain): number
        for table, chains in by_iptables.items()
        for chain, number in chains.items()
    }


# --- the generator against the captures ----------------------------------------------------------


def of_services(found: Iterable[str], pattern: str) -> set[str]:
    return {rule for rule in found if re.search(pattern, rule)}


def test_generated_iptables_rules_are_those_that_kube_proxy_wrote() -> None:
    services = captured_services("", r"svc-\d+")
    written = rules(capture("iptables/small.v4.save"))
    generated = rules(rulesets.iptables(services))
    assert len(services) == 30
    assert not set(generated) - set(written)
    ours = r'"ns-\d/svc-\d+:'
    assert of_services(generated, ours) == of_services(written, ours)


def test_generated_rules_of_a_large_cluster_are_those_that_kube_proxy_wrote() -> None:
    services = captured_services("medium.", r"svc-1\d\d\d")
    written = set(rules(capture("iptables/medium.v4.save.gz")))
    generated = rules(rulesets.iptables(services))
    assert len(services) == 1000
    assert not set(generated) - written


def test_generated_rules_of_a_service_without_endpoints_are_those_that_kube_proxy_wrote() -> None:
    services = [
        Service("faults", service.name, "http", "tcp", service.cluster_ip, 80, ())
        for service in captured_services("", "no-pods|not-ready|selector-mismatch")
    ]
    written = rules(capture("iptables/small.v4.save"))
    generated = rules(rulesets.iptables(services))
    assert len(of_services(generated, "has no endpoints")) == 3
    assert not set(generated) - set(written)


def test_generated_ipv6_rules_are_those_that_kube_proxy_wrote() -> None:
    generated = rules(rulesets.iptables([], family="ipv6"))
    assert generated == rules(capture("iptables/small.v6.save"))


def test_generated_nftables_are_those_that_kube_proxy_wrote() -> None:
    services = captured_services("", r"svc-\d+")
    written = {line.strip() for line in capture("nftables/small.nft").splitlines()}
    generated = rulesets.nftables(services)
    listed = {line.strip() for line in generated.splitlines()}
    assert {line for line in listed - written if not line.startswith("elements = ")} == set()
    assert set(words(generated)) <= set(words(capture("nftables/small.nft")))
    chains = r"^chain service-\w{8}-ns-"
    assert of_services(listed, chains) == of_services(written, chains)


# --- the generator in the kernel -----------------------------------------------------------------


@in_namespace
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("services", "endpoints"), [(0, 0), (30, 3), (110, 10)])
def test_a_generated_ruleset_is_saved_as_it_was_generated_and_counts_as_the_formula_says(
    namespace: Namespace, services: int, endpoints: int, family: Family, backend: Backend
) -> None:
    text = rulesets.iptables(rulesets.cluster(services, endpoints, family=family), family=family)
    namespace.restore(text, backend, family)
    assert rules(namespace.save(backend, family)) == rules(text)
    jumps = 3
    nat = counted(namespace, backend, family)["nat"]
    assert sum(nat.values()) == jumps + 5 + services * (2 + 3 * endpoints)
    assert len(of_services(nat, "KUBE-SEP-")) == services * endpoints


@in_namespace
def test_a_generated_ruleset_makes_only_the_base_chains_that_kube_proxy_uses(
    namespace: Namespace,
) -> None:
    namespace.restore(rulesets.iptables(rulesets.cluster(2, 2)))
    found = counts.nft_json(namespace.run("nft", "-j", "list", "ruleset")).rules
    assert {key for key in found if key[1:] in (("nat", "INPUT"), ("mangle", "INPUT"))} == set()
    assert found["ip", "nat", "PREROUTING"] == 1


@in_namespace
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_flips_lead_to_the_ruleset_that_a_full_sync_would_write(
    namespace: Namespace, family: Family, backend: Backend
) -> None:
    services = rulesets.cluster(20, 3, family=family)
    service = services[7]
    namespace.restore(rulesets.iptables(services, family=family), backend, family)
    for endpoints in (service.endpoints[1:], (), service.endpoints[:1], service.endpoints):
        changed = replace(service, endpoints=endpoints)
        flip = rulesets.iptables_flip(services, changed, family=family)
        namespace.restore(flip, backend, family, flush=False)
        services = tuple(changed if s.name == changed.name else s for s in services)
        wanted = rulesets.iptables(services, family=family)
        assert rules(namespace.save(backend, family)) == rules(wanted)
        assert counted(namespace, backend, family).keys() == {"mangle", "filter", "nat"}


@in_namespace
def test_a_flip_may_change_several_services_and_leave_all_in_their_order(
    namespace: Namespace,
) -> None:
    services = rulesets.cluster(20, 3)
    changed = [replace(services[3], endpoints=()), services[7].without(services[7].endpoints[0])]
    namespace.restore(rulesets.iptables(services, seed=None))
    flip = rulesets.iptables_flip(services, *changed, seed=None)
    namespace.restore(flip, flush=False)
    after = [{each.name: each for each in changed}.get(each.name, each) for each in services]
    assert rules(namespace.save()) == rules(rulesets.iptables(after))
    order = re.findall(r"-A KUBE-SERVICES .*/(svc-\d+):http cluster IP", namespace.save())
    assert order == [each.name for each in after if each.endpoints]


@in_namespace
def test_a_flip_is_a_transaction_a_table_that_rewrites_the_shared_chains_in_a_new_order(
    namespace: Namespace,
) -> None:
    services = rulesets.cluster(50, 3)
    text = rulesets.iptables(services)
    namespace.restore(text)
    generation = namespace.generation()
    flip = rulesets.iptables_flip(services, services[7].without(services[7].endpoints[0]))
    namespace.restore(flip, flush=False)
    assert namespace.generation() == generation + 2  # tables filter and nat
    in_services = r"-A KUBE-SERVICES .* cluster IP.*"
    before, after = (re.findall(in_services, part) for part in (text, namespace.save()))
    assert before != after
    assert sorted(before) == sorted(after)
    # Every rule of the shared chains, and of the changed Service's.
    filter_rules, nat_top, of_service = 4, 50 + 5, 1 + 3 * 2
    assert len(rules(flip)) == filter_rules + nat_top + of_service


@in_namespace
def test_in_a_large_cluster_a_flip_leaves_the_stale_chain(namespace: Namespace) -> None:
    services = rulesets.cluster(101, 10)
    gone = services[7].endpoints[0]
    namespace.restore(rulesets.iptables(services))
    namespace.restore(rulesets.iptables_flip(services, services[7].without(gone)), flush=False)
    assert counted(namespace, "nft", "ipv4")["nat"][services[7].endpoint_chain(gone)] == 2
    assert f"-j {services[7].endpoint_chain(gone)}" not in namespace.save()


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
def test_generated_nftables_hold_one_rule_and_one_element_for_each_service(
    namespace: Namespace, family: Family
) -> None:
    services = rulesets.cluster(30, 3, family=family)
    text = rulesets.nftables(services, family=family)
    namespace.nft(text)
    found = counts.nft_json(namespace.run("nft", "-j", "list", "ruleset"))
    ip = "ip" if family == "ipv4" else "ip6"
    assert {found.rules[ip, "kube-proxy", service.nft_chain] for service in services} == {1}
    assert found.elements[ip, "kube-proxy", "service-ips"] == 30
    assert found.elements[ip, "kube-proxy", "cluster-ips"] == 30
    assert found.elements[ip, "kube-proxy", "hairpin-connections"] == 30
    assert words(namespace.run("nft", "list", "ruleset")) == words(text)


@in_namespace
@pytest.mark.parametrize("family", FAMILIES)
def test_nft_flips_are_one_transaction_each_and_lead_to_the_full_ruleset(
    namespace: Namespace, family: Family
) -> None:
    services = rulesets.cluster(20, 3, family=family)
    service = services[7]
    namespace.nft(rulesets.nftables(services, family=family))
    for endpoints in (service.endpoints[1:], (), service.endpoints[:1], service.endpoints):
        changed = replace(service, endpoints=endpoints)
        generation = namespace.generation()
        namespace.nft(rulesets.nftables_flip(services, changed, family=family))
        assert namespace.generation() == generation + 1
        services = tuple(changed if s.name == changed.name else s for s in services)
        stale = "" if endpoints else f"chain {service.nft_chain}"
        wanted = words(rulesets.nftables(services, family=family) + stale)
        assert words(namespace.run("nft", "list", "ruleset")) == wanted


@in_namespace
@pytest.mark.parametrize("backend", BACKENDS)
def test_foreign_chains_stand_beside_those_of_kube_proxy_and_some_in_front(
    namespace: Namespace, backend: Backend
) -> None:
    own = rulesets.iptables(rulesets.cluster(3, 2))
    namespace.restore(own, backend)
    namespace.restore(foreign(), backend, flush=False)
    saved = rules(namespace.save(backend))
    assert set(rules(own)) < set(saved)
    prerouting = re.findall(r"-A PREROUTING .*-j (\S+)", namespace.save(backend))
    assert prerouting.index("cali-PREROUTING") < prerouting.index("KUBE-SERVICES")
    assert prerouting.index("KUBE-SERVICES") < prerouting.index("DOCKER")


# --- strategies ----------------------------------------------------------------------------------

few = settings(max_examples=10, deadline=None)


@in_namespace
@pytest.mark.parametrize("backend", BACKENDS)
@few
@given(data=st.data(), family=st.sampled_from(FAMILIES))
def test_whatever_the_strategies_make_is_loaded_and_counted(
    backend: Backend, data: st.DataObject, family: Family
) -> None:
    text = data.draw(strategies.iptables_save(family))
    with Namespace() as namespace:
        namespace.restore(text, backend, family)
        found = counted(namespace, backend, family)
    wanted = counts.iptables_save(text)
    assert {table: found[table] for table in wanted} == wanted


@in_namespace
@few
@given(script=strategies.nft_ruleset())
def test_whatever_native_tables_the_strategies_make_are_loaded(script: str) -> None:
    with Namespace() as namespace:
        namespace.nft(script)
        found = counts.nft_json(namespace.run("nft", "-j", "list", "ruleset"))
    assert sum(found.rules.values()) == script.count("add rule ")


# --- User Mode Linux -----------------------------------------------------------------------------


@in_uml
def test_uml_has_ipvs_and_shows_the_capture_as_it_was() -> None:
    text = capture("ipvs/ipvs.save")
    done = uml.run(["sh", "-c", "ipvsadm -R && ipvsadm -Sn"], stdin=text)
    assert (done.stdout, done.stderr, done.returncode) == (text, "", 0)
    servers = counts.ipvsadm_save(done.stdout)
    assert servers[counts.VirtualServer("ipv4", "tcp", "10.97.139.62:80")] == ("rr", {})
    dns = servers[counts.VirtualServer("ipv4", "udp", "10.110.14.134:53")]
    assert dns == ("rr", {"10.127.0.18:5353": 1, "10.127.0.19:5353": 1})


@in_uml
def test_uml_takes_generated_virtual_servers_of_both_families_and_their_addresses() -> None:
    fours, sixes = (rulesets.cluster(20, 3, family=family) for family in FAMILIES)
    addresses = rulesets.ipvs_addresses(fours) + rulesets.ipvs_addresses(sixes, family="ipv6")
    script = f"ipvsadm -R; ipvsadm -Sn; ip -batch - <<'END' || exit\n{addresses}END\n"
    done = uml.run(
        ["sh", "-c", f"{script} ip -oneline address show kube-ipvs0 | wc -l >&2"],
        stdin=rulesets.ipvs(fours) + rulesets.ipvs(sixes),
        kube_ipvs0=True,
    )
    servers = counts.ipvsadm_save(done.stdout)
    assert len(servers) == 40
    assert {len(each.weights) for each in servers.values()} == {3}
    assert done.stderr.strip() == "40"


@in_uml
def test_uml_without_the_ipvs_modules_has_no_ipvs() -> None:
    done = uml.run(["ls", "/proc/net/ip_vs"], modules=uml.BASE_MODULES)
    assert done.returncode != 0
    assert "No such file" in done.stderr


@in_uml
def test_a_call_in_uml_returns_or_raises_what_the_function_does() -> None:
    assert "ip_vs" in uml.call(os.listdir, "/proc/net")
    with pytest.raises(FileNotFoundError, match="/proc/net/ip_vs"):
        uml.call(os.stat, "/proc/net/ip_vs", modules=uml.BASE_MODULES)


@in_uml
def test_uml_is_stopped_when_the_time_is_up_and_says_what_was_printed_till_then() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        uml.run(["sh", "-c", "echo so far; exec sleep 1000"], timeout=10, modules=())
    assert caught.value.stdout == b"so far\n"


@in_uml
def test_uml_reports_a_kernel_that_stops_early() -> None:
    with pytest.raises(LabError, match="Module nonsense not found"):
        uml.run(["true"], modules=("nonsense",))


@in_namespace
@pytest.mark.parametrize("last", ["iptables", "nftables"])
def test_of_two_programs_that_translate_the_one_whose_chain_came_last_does(
    namespace: Namespace, last: str
) -> None:
    """As RUNBOOKS.md says of leftovers."""
    (service,) = rulesets.cluster(1, 2)
    by_iptables, by_nftables = (service.without(each) for each in service.endpoints[::-1])
    load: dict[str, Callable[[], object]] = {
        "iptables": partial(namespace.restore, rulesets.iptables([by_iptables])),
        "nftables": partial(namespace.nft, rulesets.nftables([by_nftables])),
    }
    for mode in sorted(load, key=lambda each: each == last):
        load[mode]()
    namespace.run("ip", "address", "add", rulesets.POD_RANGE, "dev", "lo")
    namespace.run("ip", "route", "add", rulesets.SERVICE_RANGE, "dev", "lo")
    answering = by_iptables if last == "iptables" else by_nftables
    assert namespace.call(connects, service, answering.endpoints[0])


def connects(service: Service, only: Endpoint) -> bool:
    """Whether a connection to the Service gets to this endpoint, which alone listens."""
    with socket.create_server((only.address, only.port)):
        try:
            socket.create_connection((service.cluster_ip, service.port), timeout=5).close()
        except ConnectionRefusedError:
            return False
        return True
