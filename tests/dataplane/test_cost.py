"""What a first packet pays, by numbers worked out by hand."""

from __future__ import annotations

import pytest

from vipscope.dataplane.cost import FEW_RULES, LEAST_HANDSHAKES, measured, modelled

ENOUGH = LEAST_HANDSHAKES


def handshakes(**probes: tuple[float, float]) -> dict[tuple[str, str], tuple[float, ...]]:
    """Probe -> (vip, direct) seconds of each of its handshakes."""
    return {
        (name, path): (seconds,) * ENOUGH
        for name, both in probes.items()
        for path, seconds in zip(("vip", "direct"), both, strict=True)
    }


def test_measured_is_the_difference_of_the_medians_and_not_of_the_means() -> None:
    through = (*(3e-3,) * ENOUGH, 1.0)
    assert measured({("a", "vip"): through, ("a", "direct"): (1e-3,) * ENOUGH}) == 2e-3


def test_each_probe_is_compared_with_itself() -> None:
    far_and_near = handshakes(far=(0.101, 0.1), near=(0.003, 0.001), odd=(0.2, 0.1))
    assert measured(far_and_near) == pytest.approx(0.002)


def test_where_the_straight_way_is_the_longer_one_measured_is_negative() -> None:
    assert measured(handshakes(a=(1e-4, 3e-4))) == pytest.approx(-2e-4)


@pytest.mark.parametrize("path", ["vip", "direct"])
def test_too_few_handshakes_by_either_path_are_no_measurement(path: str) -> None:
    few = handshakes(a=(2e-3, 1e-3))
    assert measured(few) is not None
    few["a", path] = few["a", path][1:]
    assert measured(few) is None
    assert measured({}) is None


DEEP = (1000, 2000, 10_000)


def loopback(ipv4: float, ipv6: float = 0) -> dict[str, tuple[float, ...]]:
    """What handshakes by each family took longer; one was disturbed."""
    return {
        family: (*(longer,) * (ENOUGH - 1), 1.0)
        for family, longer in (("ipv4", ipv4), ("ipv6", ipv6))
    }


def test_modelled_is_median_depth_times_what_a_rule_adds_to_a_handshake() -> None:
    assert modelled({"ipv4": DEEP}, loopback(100e-6)) == pytest.approx(2000 / 10_000 * 100e-6)


def test_modelled_is_that_of_ipv4_where_there_are_services_by_it() -> None:
    both = loopback(100e-6, 900e-6)
    assert modelled({"ipv4": DEEP, "ipv6": DEEP}, both) == pytest.approx(20e-6)
    assert modelled({"ipv6": DEEP}, both) == pytest.approx(180e-6)
    assert modelled({"ipv4": (1, 3), "ipv6": DEEP}, both) is None


def test_below_the_depth_that_can_be_calibrated_nothing_is_modelled() -> None:
    assert modelled({"ipv4": (0, 10, FEW_RULES)}, loopback(1e-4)) == pytest.approx(2e-6)
    for few in ((0, 10, FEW_RULES - 1), (4,) * 1000, (0,)):
        assert modelled({"ipv4": few}, loopback(1e-4)) is None


def test_what_cannot_be_told_is_not_modelled() -> None:
    assert modelled({}, loopback(100e-6)) is None
    assert modelled({"ipv4": (), "ipv6": DEEP}, loopback(100e-6, 100e-6)) is None


def test_too_few_handshakes_calibrate_nothing() -> None:
    enough = loopback(100e-6)
    assert modelled({"ipv4": DEEP}, enough) is not None
    assert modelled({"ipv4": DEEP}, {**enough, "ipv4": enough["ipv4"][1:]}) is None
    assert modelled({"ipv4": DEEP}, {**enough, "ipv6": ()}) is not None
