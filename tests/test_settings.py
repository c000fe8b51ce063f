"""Settings: flags, variables, defaults, and one clear line for what is wrong."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import pytest

from vipscope.settings import (
    COLLECTORS,
    Address,
    DoctorSettings,
    ProbeTarget,
    Settings,
    SettingsError,
    Target,
    TraceSettings,
    environment_name,
    load,
    load_doctor,
    load_trace,
    parser,
)

FLAGS = {
    "--web.listen-address": ("127.0.0.1:1", "listen_addresses", (Address("127.0.0.1", 1),)),
    "--web.telemetry-path": ("/m", "telemetry_path", "/m"),
    "--web.config.file": ("/w.yml", "web_config", Path("/w.yml")),
    "--web.dashboards-url": ("https://g/d/?a=%20", "dashboards", "https://g/d/?a=%20"),
    "--role": ("node", "role", "node"),
    "--node-name": ("n", "node_name", "n"),
    "--kubeconfig": ("/k", "kubeconfig", Path("/k")),
    "--lease": ("kube-system/vipscope", "lease", "kube-system/vipscope"),
    "--top-services": ("0", "top_services", 0),
    "--drift.grace": ("3", "drift_grace", 3.0),
    "--unroutable.load-balancer-pending-after": ("60", "pending_after", 60.0),
    "--unroutable.resolve-external-names": ("true", "resolve_external_names", True),
    "--cpu-budget": ("0.5", "cpu_budget", 0.005),
    "--nftables.follow": ("false", "follow", False),
    "--nftables.receive-buffer-bytes": ("4096", "receive_buffer", 4096),
    "--path.procfs": ("/p", "procfs", Path("/p")),
    "--path.xtables-lock": ("/l", "xtables_lock", Path("/l")),
    "--kube-proxy.metrics-url": ("http://h:1", "kube_proxy_metrics", "http://h:1"),
    "--kube-proxy.health-url": ("http://h:2", "kube_proxy_health", "http://h:2"),
    "--probe.target": (
        "web=tcp://10.96.0.1:443,direct=10.0.0.1:6443",
        "probe_targets",
        (ProbeTarget("web", "tcp", Address("10.96.0.1", 443), (Address("10.0.0.1", 6443),), ""),),
    ),
    "--probe.interval": ("0.5", "probe_interval", 0.5),
    "--probe.timeout": ("3", "probe_timeout", 3.0),
    "--log.level": ("error", "log_level", "error"),
    "--log.format": ("json", "log_format", "json"),
}
"""Flag -> a text other than the default, the field it sets, the field's value."""


def test_nothing_given_is_the_defaults() -> None:
    settings = load([], {})
    assert settings == Settings()
    assert settings.listen_addresses == (Address("", 9908),)
    assert settings.node_name == platform.node()
    assert settings.cpu_budget == 0.02
    assert settings.collectors == frozenset(COLLECTORS)


def test_every_field_has_a_flag_here() -> None:
    fields = {each.name for each in dataclasses.fields(Settings)}
    assert fields == {field for _, field, _ in FLAGS.values()} | {"collectors"}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_sets_its_field_and_so_does_its_variable(flag: str) -> None:
    text, field, value = FLAGS[flag]
    assert getattr(load([f"{flag}={text}"], {}), field) == value
    variable = environment_name(flag.removeprefix("--"))
    assert getattr(load([], {variable: text}), field) == value


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_wins_over_its_variable_even_over_a_wrong_one(flag: str) -> None:
    text, field, value = FLAGS[flag]
    variable = environment_name(flag.removeprefix("--"))
    assert getattr(load([flag, text], {variable: "\0"}), field) == value


def test_every_flag_of_the_command_line_has_a_variable_of_its_name() -> None:
    flags = [
        option.removeprefix("--")
        for action in parser()._actions
        for option in action.option_strings
        if option.startswith("--") and option not in ("--help", "--version")
        if not option.startswith("--no-")
    ]
    names = [environment_name(flag) for flag in flags]
    assert len(set(names)) == len(names)
    assert environment_name("web.listen-address") == "VIPSCOPE_WEB_LISTEN_ADDRESS"
    assert environment_name("collector.ipvs") == "VIPSCOPE_COLLECTOR_IPVS"


@pytest.mark.parametrize("flag", FLAGS)
def test_an_empty_variable_is_one_that_was_not_given(flag: str) -> None:
    assert load([], {environment_name(flag.removeprefix("--")): ""}) == Settings()


def test_variables_that_kubernetes_sets_for_a_service_called_vipscope_do_no_harm() -> None:
    environment = {
        "VIPSCOPE_PORT": "tcp://10.0.0.1:9908",
        "VIPSCOPE_SERVICE_HOST": "10.0.0.1",
        "VIPSCOPE_PORT_9908_TCP_PROTO": "tcp",
    }
    assert load([], environment) == Settings()


def test_listen_addresses_repeat_and_the_variable_takes_a_list() -> None:
    expected = (Address("127.0.0.1", 80), Address("::1", 81))
    flags = ["--web.listen-address=127.0.0.1:80", "--web.listen-address", "[::1]:81"]
    assert load(flags, {}).listen_addresses == expected
    variables = {"VIPSCOPE_WEB_LISTEN_ADDRESS": "127.0.0.1:80, [::1]:81"}
    assert load([], variables).listen_addresses == expected


@pytest.mark.parametrize(
    ("text", "target"),
    [
        (
            "default/web:http=http://10.96.0.2:80/healthz?x=1,direct=10.0.0.1:80,10.0.0.2:80",
            ProbeTarget(
                "default/web:http", "http", Address("10.96.0.2", 80),
                (Address("10.0.0.1", 80), Address("10.0.0.2", 80)), "/healthz?x=1",
            ),
        ),
        (
            "w=http://10.96.0.2:80,direct=10.0.0.1:80",
            ProbeTarget("w", "http", Address("10.96.0.2", 80), (Address("10.0.0.1", 80),), "/"),
        ),
        (
            "dns=dns://[fd00::a]:53/a.b,direct=[fd00::1]:53",
            ProbeTarget("dns", "dns", Address("fd00::a", 53), (Address("fd00::1", 53),), "a.b"),
        ),
        (
            "node=tcp://[fd00::a]:9908,direct=fd00::1:9908",
            ProbeTarget("node", "tcp", Address("fd00::a", 9908), (Address("fd00::1", 9908),), ""),
        ),
        (
            "dns=dns://10.96.0.10:53,direct=10.0.0.1:53",
            ProbeTarget(
                "dns", "dns", Address("10.96.0.10", 53), (Address("10.0.0.1", 53),),
                "kubernetes.default.svc.cluster.local",
            ),
        ),
    ],
)  # fmt: skip
def test_a_target_has_a_kind_a_vip_and_endpoints(text: str, target: ProbeTarget) -> None:
    assert load([f"--probe.target={text}"], {}).probe_targets == (target,)


def test_targets_repeat_and_the_variable_separates_them_by_blanks() -> None:
    texts = [f"t{n}=tcp://10.96.0.{n}:80,direct=10.0.0.1:80,10.0.0.2:80" for n in (1, 2)]
    flags = [f"--probe.target={text}" for text in texts]
    from_flags = load(flags, {}).probe_targets
    assert [each.name for each in from_flags] == ["t1", "t2"]
    variable = {"VIPSCOPE_PROBE_TARGET": f" {texts[0]}\n  {texts[1]} "}
    assert load([], variable).probe_targets == from_flags


def test_two_targets_of_one_name_are_refused_for_their_series_would_be_one() -> None:
    flag = "--probe.target=web=tcp://10.96.0.1:80,direct=10.0.0.1:80"
    with pytest.raises(SettingsError, match="are called web"):
        load([flag, flag], {})


@pytest.mark.parametrize("text", [":9908", "127.0.0.1:80", "[::1]:80", "localhost:0"])
def test_an_address_reads_as_it_was_written(text: str) -> None:
    (address,) = load([f"--web.listen-address={text}"], {}).listen_addresses
    assert str(address) == text


@pytest.mark.parametrize(("text", "share"), [("2", 0.02), ("0.5%", 0.005), ("100", 1.0)])
def test_the_cpu_budget_is_a_percentage_of_one_core(text: str, share: float) -> None:
    assert load(["--cpu-budget", text], {}).cpu_budget == share


@pytest.mark.parametrize(
    ("flags", "environment", "enabled"),
    [
        (["--no-collector.ipvs"], {}, COLLECTORS.keys() - {"ipvs"}),
        (["--collector.disable-defaults"], {}, set()),
        (["--collector.disable-defaults", "--collector.ipvs"], {}, {"ipvs"}),
        ([], {"VIPSCOPE_COLLECTOR_IPVS": "false"}, COLLECTORS.keys() - {"ipvs"}),
        (["--collector.ipvs"], {"VIPSCOPE_COLLECTOR_IPVS": "false"}, set(COLLECTORS)),
        ([], {"VIPSCOPE_COLLECTOR_DISABLE_DEFAULTS": "true"}, set()),
        ([], {"VIPSCOPE_COLLECTOR_DISABLE_DEFAULTS": "false"}, set(COLLECTORS)),
        (
            ["--collector.disable-defaults"],
            {"VIPSCOPE_COLLECTOR_XTABLES": "true"},
            {"xtables"},
        ),
        (["--role=node"], {}, COLLECTORS.keys() - {"cluster"}),
        (["--role=cluster"], {}, {"cluster"}),
        (["--role=all"], {}, set(COLLECTORS)),
        ([], {"VIPSCOPE_ROLE": "cluster"}, {"cluster"}),
        (["--role=cluster", "--collector.pressure"], {}, {"cluster", "pressure"}),
        (["--role=all", "--no-collector.cluster"], {}, COLLECTORS.keys() - {"cluster"}),
        (["--role=node", "--collector.disable-defaults"], {}, set()),
    ],
)
def test_collectors_are_chosen_by_the_role_flags_and_variables(
    flags: list[str], environment: dict[str, str], enabled: set[str]
) -> None:
    assert load(flags, environment).collectors == enabled


@pytest.mark.parametrize(
    "argument",
    [
        "--web.listen-address=9908",
        "--web.listen-address=:65536",
        "--web.listen-address=::1:80",
        "--web.listen-address=[1::2::3]:80",
        "--web.listen-address=a b:80",
        "--web.listen-address=:٨٠",
        "--web.dashboards-url=javascript:alert(1)",
        "--web.dashboards-url=//grafana",
        "--web.dashboards-url=https://",
        '--web.dashboards-url=https://g/"><script>',
        "--web.dashboards-url=https://g/ x",
        "--web.dashboards-url=https://g/\n",
        "--web.telemetry-path=metrics",
        "--web.telemetry-path=/",
        "--web.telemetry-path=/healthz",
        "--web.telemetry-path=/a/../b",
        "--web.telemetry-path=/{x}",
        "--node-name=node\udcff",
        "--node-name=a\nb",
        "--role=nodes",
        "--lease=vipscope",
        "--lease=a/b/c",
        "--top-services=-1",
        "--top-services=1001",
        "--unroutable.load-balancer-pending-after=5m",
        "--unroutable.load-balancer-pending-after=86401",
        "--cpu-budget=x",
        "--cpu-budget=0",
        "--cpu-budget=101",
        "--cpu-budget=nan",
        "--cpu-budget=-1",
        "--nftables.follow=yes",
        "--nftables.receive-buffer-bytes=1_000_000",
        "--nftables.receive-buffer-bytes=4095",
        "--nftables.receive-buffer-bytes=2000000000",
        "--kube-proxy.metrics-url=https://127.0.0.1:1",
        "--kube-proxy.metrics-url=http://127.0.0.1",
        "--kube-proxy.metrics-url=http://127.0.0.1:0",
        "--kube-proxy.health-url=http://127.0.0.1:1/path",
        "--probe.target=tcp://10.96.0.1:80,direct=10.0.0.1:80",
        "--probe.target=web=tcp://10.96.0.1:80",
        "--probe.target=web=udp://10.96.0.1:80,direct=10.0.0.1:80",
        "--probe.target=web=tcp://web.default:80,direct=10.0.0.1:80",
        "--probe.target=web=tcp://10.96.0.1:80,direct=pod:80",
        "--probe.target=web=tcp://10.96.0.1:80,direct=10.0.0.1:0",
        "--probe.target=web=tcp://10.96.0.1:80,direct=10.0.0.1:80,",
        "--probe.target=web=tcp://10.96.0.1:80/path,direct=10.0.0.1:80",
        "--probe.target=web=tcp://:80,direct=10.0.0.1:80",
        "--probe.target=web=http://10.96.0.1:80/a\x7fb,direct=10.0.0.1:80",
        "--probe.target=web=http://10.96.0.1:80/é,direct=10.0.0.1:80",
        "--probe.target=web=dns://10.96.0.1:80/a..b,direct=10.0.0.1:80",
        f"--probe.target=web=dns://10.96.0.1:80/{'a' * 64},direct=10.0.0.1:80",
        "--probe.target=Web=tcp://10.96.0.1:80,direct=10.0.0.1:80",
        f"--probe.target={'w' * 129}=tcp://10.96.0.1:80,direct=10.0.0.1:80",
        "--probe.interval=0",
        "--probe.interval=inf",
        "--probe.timeout=3601",
        "--log.level=loud",
        "--log.format=xml",
    ],
)
def test_a_wrong_value_is_named_with_its_flag_and_what_it_takes(argument: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load([argument], {})
    assert str(raised.value).startswith(f"{argument}: takes ")
    flag, _, value = argument.partition("=")
    variable = environment_name(flag.removeprefix("--"))
    with pytest.raises(SettingsError) as raised:
        load([], {variable: value})
    assert str(raised.value).startswith(f"{variable}={value}: takes ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nope"], "unrecognized arguments: --nope"),
        (["--web.listen"], "unrecognized arguments: --web.listen"),
        (["--cpu-budget"], "argument --cpu-budget: expected one argument"),
        (["extra"], "unrecognized arguments: extra"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(arguments, {})


def test_a_wrong_switch_is_refused() -> None:
    with pytest.raises(SettingsError, match="VIPSCOPE_COLLECTOR_IPVS=1: takes true or false"):
        load([], {"VIPSCOPE_COLLECTOR_IPVS": "1"})


# --- vipscope trace -------------------------------------------------------------------------------

TRACE_FLAGS = {
    "--node-name": ("n", "node_name", "n"),
    "--kubeconfig": ("/k", "kubeconfig", Path("/k")),
    "--path.procfs": ("/p", "procfs", Path("/p")),
    "--cluster-dns": ("[fd00::a]:5353", "cluster_dns", Address("fd00::a", 5353)),
    "--cluster-domain": ("example.org.", "cluster_domain", "example.org"),
    "--output": ("json", "output", "json"),
}


def test_nothing_but_a_service_given_is_the_defaults_of_a_trace() -> None:
    settings = load_trace(["shop/web"], {})
    assert settings == TraceSettings(Target("shop", "web", ""))
    assert settings.node_name == platform.node()
    assert (settings.cluster_dns, settings.cluster_domain) == (None, "cluster.local")
    assert settings.output == "text"


def test_every_field_of_a_trace_has_a_flag_here() -> None:
    fields = {each.name for each in dataclasses.fields(TraceSettings)}
    assert fields == {field for _, field, _ in TRACE_FLAGS.values()} | {"target"}


@pytest.mark.parametrize("flag", TRACE_FLAGS)
def test_a_flag_or_variable_of_a_trace_sets_its_field(flag: str) -> None:
    text, field, value = TRACE_FLAGS[flag]
    assert getattr(load_trace([flag, text, "a/b"], {}), field) == value
    variable = environment_name(flag.removeprefix("--"))
    assert getattr(load_trace(["a/b"], {variable: text}), field) == value
    assert getattr(load_trace(["a/b", flag, text], {variable: "\0"}), field) == value


def test_the_output_has_a_short_flag() -> None:
    assert load_trace(["-o", "json", "a/b"], {}).output == "json"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("shop/web", Target("shop", "web", "")),
        ("shop/web:http", Target("shop", "web", "http")),
        ("a/b:8080", Target("a", "b", "8080")),
    ],
)
def test_a_target_is_a_service_and_maybe_a_port(text: str, target: Target) -> None:
    assert load_trace([text], {}).target == target


@pytest.mark.parametrize(
    "text",
    [
        "web",
        "a/b/c",
        "a/",
        "/b",
        "a/b:",
        "A/b",
        "a/b:c:d",
        "a/b\n",
        "a/../b",
        "a/-b",
        "a/b?x=y",
        "",
    ],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"takes NAMESPACE/SERVICE or NAMESPACE/SERVICE:PORT"):
        load_trace([text], {})


@pytest.mark.parametrize("text", ["10.0.0.10", "10.0.0.10:53"])
def test_the_dns_server_is_an_address_with_or_without_a_port(text: str) -> None:
    assert load_trace([f"--cluster-dns={text}", "a/b"], {}).cluster_dns == Address("10.0.0.10", 53)


@pytest.mark.parametrize(
    "argument",
    [
        "--cluster-dns=kube-dns",
        "--cluster-dns=localhost:53",
        "--cluster-dns=10.0.0.10:0",
        "--cluster-dns=:53",
        "--cluster-domain=a..b",
        "--cluster-domain=a b",
        "--output=yaml",
    ],
)
def test_a_wrong_value_of_a_trace_is_named_with_its_flag(argument: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_trace([argument, "a/b"], {})
    assert str(raised.value).startswith(f"{argument}: takes ")


@pytest.mark.parametrize("arguments", [[], ["a/b", "c/d"], ["--role=node", "a/b"]])
def test_a_wrong_command_line_of_a_trace_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SettingsError):
        load_trace(arguments, {})


# --- vipscope doctor ------------------------------------------------------------------------------


def test_the_doctor_takes_what_serve_takes_with_defaults_for_a_single_look() -> None:
    assert load_doctor([], {}) == DoctorSettings()
    settings = load_doctor(["--role=node", "-o", "json"], {"VIPSCOPE_DRIFT_GRACE": "1"})
    assert settings.output == "json"
    assert settings.drift_grace == 1.0
    assert "cluster" not in settings.collectors
    assert (settings.cpu_budget, settings.top_services, settings.log_level) == (1.0, 1000, "error")
    assert load_doctor(["--cpu-budget=3"], {"VIPSCOPE_OUTPUT": "json"}).cpu_budget == 0.03


def test_the_doctor_never_asks_for_the_lease() -> None:
    assert load_doctor(["--lease=a/b"], {"VIPSCOPE_LEASE": "c/d"}).lease == ""


def test_the_form_of_the_report_is_one_of_two() -> None:
    with pytest.raises(SettingsError, match="text, json"):
        load_doctor(["-o", "yaml"], {})
