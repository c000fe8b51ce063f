"""The way of a packet to a Service on one node, step by step, and where it ends.

A pure function of what the API, the kernel, DNS and the network said. The steps are in the order
in which a client meets them, so the first broken one names the cause.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from ipaddress import ip_address
from typing import Final

from vipscope.cluster import EndpointSlice, Service, ServicePort
from vipscope.dataplane.desired import (
    PROXY_NAME_LABEL,
    Candidate,
    DesiredPort,
    candidates,
    exclusions,
    is_proxied,
)
from vipscope.dataplane.drift import GRACE, LEADING, Difference, difference, hops
from vipscope.dataplane.excerpt import Excerpt
from vipscope.dataplane.expected import Entry, virtual_server
from vipscope.dataplane.programmed import REFUSALS, Destination
from vipscope.diagnosis.evidence import (
    Answer,
    Cluster,
    Conntrack,
    Facts,
    Flow,
    Flows,
    Kernel,
    Outcome,
    Program,
    Question,
    Way,
)
from vipscope.diagnosis.report import Report, Step, Verdict
from vipscope.diagnosis.unroutable import unroutable

FILLED: Final = 0.9
"""Share of connection tracking's table from which it is worth a warning."""
LAST_CHANGE: Final = "endpoints.kubernetes.io/last-change-trigger-time"
_FOR_EVER: Final = float("inf")

_SERVICE, _DNS, _ENDPOINTS, _PROXY = "Service", "DNS", "Endpoints", "kube-proxy"
_ESSENTIAL: Final = frozenset((_SERVICE, _PROXY))
"""Steps without which nothing can be said of the way."""


def trace(facts: Facts) -> Report:
    """All steps, and the one sentence that they come to."""
    steps = tuple(_steps(facts))
    subject = f"{facts.namespace}/{facts.name}"
    if facts.wanted_port:
        subject += f":{facts.wanted_port}"
    return Report(subject, facts.place.node, steps, *_conclude(facts, steps))


def chosen_ports(service: Service, wanted: str) -> tuple[ServicePort, ...]:
    """The ports of a Service that a name or a number means; all for ""."""
    return tuple([port for port in service.spec.ports if wanted in ("", port.name, str(port.port))])


def backends(port: DesiredPort, kernel: Kernel) -> list[str]:
    """All endpoints that clients of the cluster IP may meet, those first that they should not."""
    wanted = set(port.local if port.internal_local else port.cluster)
    program = _active(port, kernel)
    if program is None:
        return sorted(wanted)
    stale = _compare(program, port).stale_endpoints
    return [*sorted(stale), *sorted(wanted - stale)]


def destination(port: DesiredPort) -> Destination:
    """Where clients in the cluster send their packets."""
    return port.cluster_ip, port.key.protocol, port.port


def _conclude(facts: Facts, steps: Sequence[Step]) -> tuple[Verdict, str]:
    broken = [step for step in steps if step.verdict is Verdict.BROKEN]
    if broken:
        # What comes of the first one, on the same way, is not another finding.
        return Verdict.BROKEN, _sentence(broken[0])
    unknown = [
        step for step in steps if step.verdict is Verdict.UNKNOWN and step.title in _ESSENTIAL
    ]
    if unknown:
        return Verdict.UNKNOWN, _sentence(unknown[0])
    warned = next((step for step in steps if step.verdict is Verdict.WARN), None)
    clear = _clear(facts.ways) or steps[0].summary
    if warned is not None:
        return Verdict.WARN, f"{clear}; but {_sentence(warned)}"
    return Verdict.OK, clear


def _sentence(step: Step) -> str:
    return f"{step.subject}: {step.summary}" if step.subject else step.summary


def _clear(ways: Iterable[Way]) -> str:
    """What a clear way to each port is."""
    parts = []
    for way in ways:
        port = way.port
        # Where policy Local has none and the way is clear all the same, it is IPVS's.
        ends = (port.local or port.cluster) if port.internal_local else port.cluster
        connected = way.through is not None and way.through.outcome is Outcome.CONNECTED
        proof = "and a connection came about" if connected else "as far as the rules tell"
        parts.append(f"{_subject(port)} leads to {_count(len(ends), 'backend')}, {proof}")
    return "; ".join(parts)


def _steps(facts: Facts) -> Iterator[Step]:
    cluster = facts.cluster
    if isinstance(cluster, str):
        yield Step(
            _SERVICE,
            Verdict.UNKNOWN,
            f"the API server does not tell: {cluster}",
            advice="give a kubeconfig with --kubeconfig, of somebody who may read Services, "
            "EndpointSlices, Pods and Nodes",
        )
        return
    yield _service(facts, cluster.service)
    if cluster.service is None:
        return
    if cluster.node:
        yield Step(
            "Node",
            Verdict.WARN,
            f"{cluster.node}: zone unknown, so topology hints of zones are left out of account",
            advice="give the node's name in the API with --node-name",
        )
    if facts.question is not None:
        yield _dns(facts.question, cluster.service)
    if facts.ways:
        yield _conntrack(facts.conntrack)
    for way in facts.ways:
        yield from _way(facts, cluster, cluster.service, way)


# --- what the API and DNS say ---------------------------------------------------------------------


def _service(facts: Facts, service: Service | None) -> Step:
    if service is None:
        return Step(
            _SERVICE,
            Verdict.BROKEN,
            f"there is no Service {facts.name} in namespace {facts.namespace}",
        )
    spec = service.spec
    ports = ", ".join(map(_port, spec.ports))
    if spec.type == "ExternalName":
        text = f"an alias of {spec.external_name}: DNS alone leads there, and no rule of this node"
        return Step(_SERVICE, Verdict.OK, text)
    if facts.wanted_port and not chosen_ports(service, facts.wanted_port):
        kind = "numbered" if facts.wanted_port.isdecimal() else "named"
        text = f"Service has no port {kind} {facts.wanted_port}; ports are: {ports or 'none'}"
        return Step(_SERVICE, Verdict.BROKEN, text)
    if spec.cluster_ip == "None":
        text = "headless: clients get the Pods' addresses from DNS, and no rule is involved"
        return Step(_SERVICE, Verdict.OK, text)
    other = (service.metadata.labels or {}).get(PROXY_NAME_LABEL)
    if other is not None:
        text = f"another proxy than kube-proxy serves it: {other}"
        return Step(_SERVICE, Verdict.WARN, text, advice="ask that proxy")
    if not is_proxied(service):
        return Step(_SERVICE, Verdict.BROKEN, "it has no cluster IP yet")
    addresses = ", ".join(spec.cluster_ips or (spec.cluster_ip,))
    evidence = [f"ports: {ports}"]
    if spec.internal_traffic_policy != "Cluster":
        evidence.append(f"internalTrafficPolicy: {spec.internal_traffic_policy}")
    if spec.session_affinity != "None":
        evidence.append(f"sessionAffinity: {spec.session_affinity}")
    if spec.traffic_distribution is not None:
        evidence.append(f"trafficDistribution: {spec.traffic_distribution}")
    return Step(_SERVICE, Verdict.OK, f"{spec.type}, cluster IP {addresses}", tuple(evidence))


def _port(port: ServicePort) -> str:
    number = f"{port.port}/{port.protocol}"
    return f"{port.name} ({number})" if port.name else number


def _dns(question: Question, service: Service) -> Step:
    verdicts: list[tuple[Verdict, str]] = []
    evidence = [f"asked: {question.server}"] if question.server else []
    if question.reason:
        verdicts.append((Verdict.UNKNOWN, question.reason))
    for kind, answer in question.answers.items():
        evidence.append(f"{kind}: {answer if isinstance(answer, str) else _answer(answer)}")
        verdicts.append(_judge_answer(question.name, kind, answer, service))
    order = (Verdict.BROKEN, Verdict.UNKNOWN, Verdict.WARN, Verdict.OK)
    verdict, text = min(verdicts, key=lambda each: order.index(each[0]))
    advice = {
        Verdict.BROKEN: "look at the cluster's DNS: its own Service is traced with "
        "`vipscope trace kube-system/kube-dns`, other domains are given with --cluster-domain",
        Verdict.UNKNOWN: "give the cluster's DNS server with --cluster-dns",
    }.get(verdict, "")
    return Step(_DNS, verdict, text, tuple(evidence), advice)


def _answer(answer: Answer) -> str:
    aliases = "".join(f"alias of {each}, " for each in answer.aliases)
    return f"{answer.code}, {aliases}{', '.join(answer.addresses) or 'no address'}"


def _judge_answer(
    name: str, kind: str, answer: Answer | str, service: Service
) -> tuple[Verdict, str]:
    if isinstance(answer, str):
        return Verdict.UNKNOWN, f"no answer for {name}: {answer}"
    spec = service.spec
    if answer.code not in ("NOERROR", "NXDOMAIN"):
        verdict = Verdict.BROKEN if answer.code == "SERVFAIL" else Verdict.UNKNOWN
        return verdict, f"DNS answers {answer.code} for {name}"
    got = ", ".join(answer.addresses) or "no address"
    if spec.type == "ExternalName":
        if answer.addresses or answer.aliases:
            return Verdict.OK, f"{name} is {_answer(answer)}"
        return Verdict.BROKEN, f"DNS has nothing for {name}"
    if spec.cluster_ip == "None":
        verdict = Verdict.OK if answer.addresses else Verdict.WARN
        return verdict, f"{name} is {got}"
    wanted = {_canonical(each) for each in spec.cluster_ips or (spec.cluster_ip,)}
    wanted = {each for each in wanted if (":" in each) == (kind == "AAAA")}
    if not answer.addresses:
        return Verdict.BROKEN, f"DNS does not know {name} ({answer.code})"
    if {_canonical(each) for each in answer.addresses} == wanted:
        return Verdict.OK, f"{name} is {got}"
    return Verdict.BROKEN, f"DNS gives {got} for {name}, not {', '.join(sorted(wanted))}"


def _canonical(address: str) -> str:
    try:
        return str(ip_address(address))
    except ValueError:
        return address


# --- one way --------------------------------------------------------------------------------------


def _way(facts: Facts, cluster: Cluster, service: Service, way: Way) -> Iterator[Step]:
    subject = _subject(way.port)
    found = candidates(cluster.slices, way.port.key, facts.place)
    program = _active(way.port, way.kernel)
    yield _endpoints(facts, cluster, service, way.port, found, program)
    yield _proxy(subject, way, program)
    rules_are_right = False
    if program is not None:
        late = _is_late(cluster, facts.now)
        rules = [
            *_way_to_rules(subject, program, way.kernel),
            *_rule(subject, program, way.port, late=late),
            *_backends(subject, program, way.port, found, late=late),
        ]
        yield from rules
        rules_are_right = all(step.verdict is Verdict.OK for step in rules)
    yield from _through(subject, way, rules_are_right=rules_are_right)
    yield from _straight(subject, way, cluster.slices)
    yield _flows(subject, way, found, program)


def _subject(port: DesiredPort) -> str:
    return virtual_server(port.cluster_ip, port.key.protocol, port.port)


def _endpoints(
    facts: Facts,
    cluster: Cluster,
    service: Service,
    port: DesiredPort,
    found: list[Candidate],
    program: Program | None,
) -> Step:
    why = exclusions(port, found, local=port.internal_local)
    pods = _pods(cluster.slices)
    evidence = tuple(
        [
            f"{_with_pod(address, pods)}: {'used' if reason is None else f'left out: {reason}'}"
            for address, reason in why.items()
        ]
    )
    subject, used = _subject(port), sum(reason is None for reason in why.values())
    if port.internal_answer == "forward":
        text = f"{used} of {_count(len(why), 'endpoint')} used"
        if port.topology:
            text += f", by hints for this {port.topology}"
        return Step(_ENDPOINTS, Verdict.OK, text, evidence, subject=subject)
    if port.internal_answer == "drop":
        verdict = Verdict.BROKEN
        text = "internalTrafficPolicy is Local, and no endpoint is on this node"
        if _is_ipvs(program) and port.cluster:
            verdict, text = Verdict.WARN, f"{text}: IPVS sends to those of other nodes"
        else:
            text = f"dropped: {text}"
        return Step(
            _ENDPOINTS,
            verdict,
            text,
            evidence,
            "run a Pod of it on each node that has clients, or set internalTrafficPolicy: Cluster",
            subject,
        )
    text, advice = _why_nobody(facts, cluster, service, port, found)
    return Step(_ENDPOINTS, Verdict.BROKEN, f"refused: {text}", evidence, advice, subject)


def _why_nobody(
    facts: Facts, cluster: Cluster, service: Service, port: DesiredPort, found: Sequence[Candidate]
) -> tuple[str, str]:
    """Why a Service port has no usable endpoint anywhere, and what to do."""
    if isinstance(cluster.pods, str):
        text = "no endpoint is ready" if found else "there is no endpoint"
        return f"{text}; why is not known: {cluster.pods}", ""
    reasons = unroutable(
        service, cluster.slices, cluster.pods, now=facts.now, pending_after=_FOR_EVER
    )
    for each in reasons:
        if each.port == port.key.port:
            return each.detail, _ADVICE.get(each.reason.value, "")
    if found:
        return "no endpoint is ready: its Pods are ending", ""
    return "there is no endpoint: scaled to zero, or its Pods are only on their way", ""


_ADVICE: Final[Mapping[str, str]] = {
    "selector_matches_no_pods": "mend the Service's selector or the Pods' labels",
    "pods_not_ready": "look at these Pods' readiness probes and events",
    "port_name_mismatch": "mend the Service's targetPort or the name of the container's port",
    "no_endpoint_slices": "make an EndpointSlice for it, or give it a selector",
}


def _pods(slices: Iterable[EndpointSlice]) -> dict[str, str]:
    """Address -> name of the Pod behind it."""
    return {
        endpoint.addresses[0]: endpoint.target_ref.name
        for piece in slices
        for endpoint in piece.endpoints or ()
        if endpoint.addresses and endpoint.target_ref is not None and endpoint.target_ref.name
    }


def _with_pod(endpoint: str, pods: Mapping[str, str]) -> str:
    pod = pods.get(endpoint.rpartition(":")[0].strip("[]"))
    return f"{endpoint} (Pod {pod})" if pod else endpoint


def _is_late(cluster: Cluster, now: float) -> bool:
    """Whether the API changed so lately that kube-proxy may still be at it.

    Deletions tell no time: after one, this is False.
    """
    times = [(piece.metadata.annotations or {}).get(LAST_CHANGE) for piece in cluster.slices]
    if cluster.service is not None:
        times.append(cluster.service.metadata.creation_timestamp)
    return any(0 <= now - _seconds(each) < GRACE for each in times if each is not None)


def _seconds(text: str) -> float:
    """Unix time of an RFC 3339 time; of anything else the beginning of time."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0


# --- what the kernel holds ------------------------------------------------------------------------


def _active(port: DesiredPort, kernel: Kernel) -> Program | None:
    """The program that takes the packets: of several the first with a way in for them.

    None when there is no program, and where one without a way in may only be a leftover beside that
    which could not be read.
    """
    programs = kernel.programs
    taking = (p for p in programs if p.held.program.at(destination(port)))
    return next(taking, programs[0] if programs and not kernel.unread else None)


def _is_ipvs(program: Program | None) -> bool:
    return program is not None and program.held.program.mode == "ipvs"


def _proxy(subject: str, way: Way, program: Program | None) -> Step:
    kernel = way.kernel
    unread = tuple([f"not read: {each}" for each in kernel.unread])
    if program is None:
        if unread:
            return Step(
                _PROXY,
                Verdict.UNKNOWN,
                f"what it has programmed cannot be read: {'; '.join(kernel.unread)}",
                advice="run vipscope as root with NET_ADMIN in the node's network namespace",
                subject=subject,
            )
        if way.through is not None and way.through.outcome is Outcome.CONNECTED:
            text = "kube-proxy has programmed nothing, and yet a connection comes about"
            advice = "another proxy does its work, as Cilium's: ask that"
            return Step(_PROXY, Verdict.WARN, text, advice=advice, subject=subject)
        return Step(
            _PROXY,
            Verdict.BROKEN,
            "kube-proxy has programmed nothing on this node, in any mode",
            advice="look whether kube-proxy runs here; and run vipscope in the node's network "
            "namespace",
            subject=subject,
        )
    others = [each.name for each in kernel.programs if each is not program]
    if not others:
        return Step(_PROXY, Verdict.OK, f"mode {program.name}", unread, subject=subject)
    return Step(
        _PROXY,
        Verdict.WARN,
        f"mode {program.name}, with leftovers of mode {' and '.join(others)}",
        unread,
        "take the leftovers away: `kube-proxy --cleanup` on a node without kube-proxy, or a reboot",
        subject,
    )


def _way_to_rules(subject: str, program: Program, kernel: Kernel) -> Iterator[Step]:
    title, mode = "Way to the rules", program.held.program.mode
    if mode == "ipvs":
        yield _bound(title, subject, kernel.bound)
        return
    held = program.held
    needed = hops(mode, Counter(entry.place for entry in program.expected.entries))
    evidence = [
        f"{hop.chain} leads to {hop.to}: rule {position.number} of {position.of}"
        for hop in dict.fromkeys(hop._replace(fault=needed[0].fault) for hop in needed)
        if (position := held.jumps.get((hop.chain, hop.to)))
    ]
    faults: dict[str, list[str]] = {}
    for hop in needed:
        if not held.program.leads(hop.chain, hop.to):
            faults.setdefault(f"no jump from {hop.chain} to {hop.to}", []).append(hop.fault.value)
    if faults:
        text = "; ".join(f"{' and '.join(told)}: {hop}" for hop, told in faults.items())
        yield Step(title, Verdict.BROKEN, text, tuple(evidence), _RESTART, subject)
    elif needed:
        text = "packets reach kube-proxy's rules"
        yield Step(title, Verdict.OK, text, tuple(evidence), subject=subject)


_RESTART: Final = "restart kube-proxy, and find out what took it away"


def _bound(title: str, subject: str, bound: bool | None) -> Step:
    if bound is None:
        text = "whether a device has the cluster IP cannot be read"
        return Step(title, Verdict.UNKNOWN, text, subject=subject)
    if bound:
        text = "a device of this node has the cluster IP, so IPVS gets its packets"
        return Step(title, Verdict.OK, text, subject=subject)
    text = "lost: no device of this node has the cluster IP, so IPVS never gets its packets"
    return Step(title, Verdict.BROKEN, text, advice=_RESTART, subject=subject)


def _compare(program: Program, port: DesiredPort) -> Difference:
    unexpected = program.held.unexpected(program.expected, destination(port))
    return difference(program.expected, program.held.program, unexpected)


def _rule(subject: str, program: Program, port: DesiredPort, *, late: bool) -> Iterator[Step]:
    """Whether each way in is there, and leads on."""
    held, wanted = program.held.program, program.expected
    title = "Virtual server" if held.mode == "ipvs" else "Rule"
    at = destination(port)
    here = sorted(held.at(at))
    missing = sorted(entry for entry in wanted.entries if not held.holds(entry))
    wrong = sorted(_compare(program, port).unexpected)
    gaps = [*_gaps(program)]
    evidence = [_describe(entry, program.held) for entry in here]
    evidence += [f"missing: {_place(entry)}" for entry in missing]
    evidence += [f"unwanted: {_describe(entry, program.held)}" for entry in wrong]
    evidence += gaps
    text = ""
    if any(entry[1:4] == at for entry in missing):
        text = f"the {title.lower()} is missing: kube-proxy has not programmed this Service"
        if here:
            text = _instead(here, wanted.endpoints)
    elif missing:
        text = f"the {title.lower()} is missing: {_place(missing[0])}"
    elif gaps:
        text = f"the {title.lower()} leads nowhere: {gaps[0]}"
    if text:
        yield _disagreement(title, text, evidence, subject, late=late)
    elif wrong:
        text = f"{_describe(wrong[0], program.held)}, which nobody wants any more"
        yield Step(title, Verdict.WARN, text, tuple(evidence), _RESTART, subject)
    else:
        yield Step(title, Verdict.OK, evidence[0], tuple(evidence[1:]), subject=subject)


def _instead(here: Sequence[Entry], endpoints: Collection[str]) -> str:
    refusing = [entry for entry in here if entry.target in REFUSALS]
    if refusing and endpoints:
        return f"refused: {_place(refusing[0])} refuses it, though the API has usable endpoints"
    return f"{_place(here[0])} leads to {here[0].target}, where it should not"


def _gaps(program: Program) -> Iterator[str]:
    """Chains and virtual servers that are missing, or lead to nobody though they should."""
    held, wanted = program.held.program, program.expected
    for chain in sorted(wanted.chains | wanted.backends.keys()):
        leads = wanted.backends.get(chain) or chain.startswith(LEADING)
        if not held.has(chain):
            yield f"chain {chain} is missing" if wanted.chains else f"no virtual server {chain}"
        elif leads and not held.endpoints(chain):
            yield f"{chain} has no backend"


def _place(entry: Entry) -> str:
    address = virtual_server(entry.address, entry.protocol, entry.port) if entry.port else ""
    if not entry.address:
        address = f"node port {entry.port}/{entry.protocol}"
    return f"{entry.place} for {address or entry.address}"


def _describe(entry: Entry, held: Excerpt) -> str:
    if held.program.mode == "ipvs":
        return f"virtual server {entry.target}"
    position = held.positions.get(entry)
    where = f"rule {position.number} of {position.of} in " if position else "an element of "
    return f"{where}{_place(entry)} leads to {entry.target}"


def _backends(
    subject: str,
    program: Program,
    port: DesiredPort,
    found: Iterable[Candidate],
    *,
    late: bool,
) -> Iterator[Step]:
    """Whether the kernel spreads over the endpoints that the API has."""
    title, wanted = "Backends", program.expected
    held = {end for chain in wanted.backends for end in program.held.program.endpoints(chain)}
    differ = _compare(program, port)
    held |= differ.stale_endpoints
    if not (held or wanted.endpoints):
        return
    known = {each.address for each in found}
    evidence = [
        f"{end}: {_holders(end in held, end in wanted.endpoints)}"
        for end in sorted(held | wanted.endpoints)
    ]
    stale, missing = sorted(differ.stale_endpoints), sorted(differ.missing_endpoints)
    if stale:
        gone = [end for end in stale if end not in known]
        text = f"lost: backend {_some(gone)} is programmed but gone from the API"
        if not gone:
            text = f"lost: backend {_some(stale)} is programmed, and the API takes it for unusable"
        yield _disagreement(title, text, evidence, subject, late=late)
    elif missing:
        text = f"backend {_some(missing)} is in the API, and kube-proxy has not programmed it"
        yield _disagreement(title, text, evidence, subject, late=late)
    else:
        text = f"{_count(len(held), 'backend')}, those of the API"
        yield Step(title, Verdict.OK, text, tuple(evidence), subject=subject)


def _holders(in_kernel: bool, in_api: bool) -> str:
    if in_kernel and in_api:
        return "in the kernel and in the API"
    return "in the kernel, not wanted by the API" if in_kernel else "in the API, not in the kernel"


def _disagreement(
    title: str, text: str, evidence: Iterable[str], subject: str, *, late: bool
) -> Step:
    """API and kernel disagree. Right after a change that is no fault yet."""
    if late:
        advice = f"the API has changed within {GRACE:g} s: let kube-proxy catch up, and run again"
        return Step(title, Verdict.WARN, text, tuple(evidence), advice, subject)
    advice = "look at kube-proxy's log on this node: it lags, fails, or something else changed this"
    return Step(title, Verdict.BROKEN, text, tuple(evidence), advice, subject)


# --- what the network does ------------------------------------------------------------------------


def _through(subject: str, way: Way, *, rules_are_right: bool) -> Iterator[Step]:
    title = "Connection through the cluster IP"
    if way.through is None:
        text = f"{way.port.key.protocol.upper()} is not tried: no answer would prove nothing"
        yield Step(title, Verdict.UNKNOWN, text, subject=subject)
        return
    outcome, detail = way.through
    evidence = ["from this node: its packets pass OUTPUT, those of pods PREROUTING"]
    if outcome is Outcome.CONNECTED:
        yield Step(title, Verdict.OK, f"connected in {detail}", tuple(evidence), subject=subject)
        return
    text = f"{outcome.value} ({detail})"
    failed = [end for end, each in way.straight.items() if each.outcome is not Outcome.CONNECTED]
    if (way.port.internal_answer, outcome) in _AS_RULED:
        text += ", as the rules say"
    elif failed and rules_are_right:
        text = f"{_blame(way, failed)} too"
    elif way.straight and not failed:
        text += ", though each backend answers when it is asked straight"
        evidence.append("something changes or drops packets for the cluster IP alone")
    yield Step(title, Verdict.BROKEN, text, tuple(evidence), subject=subject)


_AS_RULED: Final = frozenset((("reject", Outcome.REFUSED), ("drop", Outcome.TIMED_OUT)))


def _blame(way: Way, failed: Sequence[str]) -> str:
    first = way.straight[failed[0]]
    deed = {
        Outcome.TIMED_OUT: "times out",
        Outcome.REFUSED: "is refused",
    }.get(first.outcome, f"fails ({first.detail})")
    return (
        f"NetworkPolicy or the pod itself: the rule is right, direct connect to {failed[0]} {deed}"
    )


def _straight(subject: str, way: Way, slices: Iterable[EndpointSlice]) -> Iterator[Step]:
    if not way.straight:
        return
    pods = _pods(slices)
    title = "Connections straight to the backends"
    evidence = [
        f"{_with_pod(end, pods)}: {attempt.outcome.value} ({attempt.detail})"
        for end, attempt in way.straight.items()
    ]
    if way.left_out:
        evidence.append(f"not tried: {_count(way.left_out, 'more backend')}")
    good = [end for end, each in way.straight.items() if each.outcome is Outcome.CONNECTED]
    text = f"{len(good)} of {_count(len(way.straight), 'backend')} answer"
    if len(good) == len(way.straight):
        yield Step(title, Verdict.OK, text, tuple(evidence), subject=subject)
        return
    failed = [end for end in way.straight if end not in good]
    text += f"; not {_some(failed)}"
    advice = "look whether the process listens on its target port, and at NetworkPolicies"
    yield Step(title, Verdict.BROKEN, text, tuple(evidence), advice, subject)


def _conntrack(conntrack: Conntrack | str) -> Step:
    title = "Connection tracking table"
    if isinstance(conntrack, str):
        return Step(title, Verdict.UNKNOWN, conntrack)
    text = f"{conntrack.entries} of {conntrack.limit} entries"
    if conntrack.limit and conntrack.entries >= conntrack.limit:
        text = f"dropped: the table is full, {text}"
        return Step(title, Verdict.BROKEN, text, advice=_RAISE)
    if conntrack.limit and conntrack.entries >= FILLED * conntrack.limit:
        return Step(title, Verdict.WARN, f"nearly full, {text}", advice=_RAISE)
    return Step(title, Verdict.OK, text)


_RAISE: Final = "raise net.netfilter.nf_conntrack_max, and find out who opens so many connections"


def _flows(subject: str, way: Way, found: Iterable[Candidate], program: Program | None) -> Step:
    title, flows = "Tracked connections", way.flows
    if isinstance(flows, str):
        return Step(title, Verdict.UNKNOWN, flows, subject=subject)
    evidence = tuple(_flow_lines(flows))
    total = sum(flows.counts.values())
    known = {each.address for each in found}
    address, _, port = destination(way.port)
    itself = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    silent = Counter[str]()
    for flow, count in flows.counts.items():
        if not flow.replied:
            silent[flow.backend] += count
    gone = sorted(silent.keys() - known - {itself})
    text = f"{total} to this address" if total else "none to this address"
    verdict, advice = Verdict.OK, ""
    if gone:
        verdict = Verdict.BROKEN
        text = (
            f"stale NAT: {_count(sum(silent[end] for end in gone), 'unanswered connection')} "
            f"still translated to {_some(gone)}, which is gone from the API"
        )
        advice = f"`conntrack -D -d {address}` sends them anew through the rules"
    elif silent[itself] and way.port.internal_answer == "forward" and not _is_ipvs(program):
        verdict = Verdict.WARN
        text = (
            f"never translated: {_count(silent[itself], 'unanswered connection')}, "
            "from before the rule was there"
        )
        advice = f"`conntrack -D -d {address}` sends them anew through the rules"
    elif silent:
        verdict = Verdict.WARN
        text = f"{sum(silent.values())} of {_count(total, 'connection')} to it unanswered so far"
    if not flows.complete:
        text += " (of the first entries of a table too large to read)"
    return Step(title, verdict, text, evidence, advice, subject)


def _flow_lines(flows: Flows) -> Iterator[str]:
    def rank(item: tuple[Flow, int]) -> tuple[int, Flow]:
        return -item[1], item[0]

    for flow, count in sorted(flows.counts.items(), key=rank):
        state = " ".join(filter(None, (flow.state, "" if flow.replied else "unanswered")))
        yield f"{count} translated to {flow.backend}{f' ({state})' if state else ''}"


# --- words ----------------------------------------------------------------------------------------


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
