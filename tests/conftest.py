"""What holds for all tests: in CI a skip is a failure, and what is missing is said up front."""

from __future__ import annotations

import os
from collections.abc import Generator

import hypothesis
import pytest

from tests.lab import browser
from tests.lab.namespace import requirements

# Examples run against a real kernel, on machines of any speed.
hypothesis.settings.register_profile("vipscope", deadline=None)
hypothesis.settings.load_profile("vipscope")


def pytest_report_header() -> list[str]:
    missing = (*requirements(), *browser.requirements())
    return [f"missing, its tests are skipped: {each}" for each in missing]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_skip_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_skip_in_ci(report)
    return report


def _fail_skip_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    expected = hasattr(report, "wasxfail")
    if report.skipped and not expected and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"in CI a skip is a failure: {reason}"
