"""Log lines: one message, one line."""

from __future__ import annotations

import json
import logging
import re
import sys

import pytest

from vipscope.logs import JsonFormatter, TextFormatter, escape

HOSTILE = "rule\n2026-01-01T00:00:00Z error fake\x1b[31m\r\u2028\u202ereversed\x00 é"


def record(message: str, *, trace: bool = False) -> logging.LogRecord:
    exc_info = None
    if trace:
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            exc_info = sys.exc_info()
    return logging.LogRecord(
        "vipscope.test", logging.WARNING, "here.py", 1, "%s", (message,), exc_info
    )


def test_text_is_time_level_logger_and_message() -> None:
    line = TextFormatter().format(record("ipvs: denied"))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning vipscope\.test: ipvs: denied", line
    )


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_hostile_message_stays_one_line_without_control_characters(
    formatter: logging.Formatter,
) -> None:
    assert formatter.format(record(HOSTILE)).isprintable()


def test_escaping_keeps_what_can_be_read() -> None:
    assert escape("Straße 日本") == "Straße 日本"
    assert escape("a\nb\x1b\u2028") == r"a\nb\x1b\u2028"


def test_a_traceback_in_text_is_indented_so_that_none_of_it_looks_like_a_message() -> None:
    first, *rest = TextFormatter().format(record("broke", trace=True)).split("\n")
    assert first.endswith("broke")
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert "ValueError: rule" in rest[-2]


def test_json_holds_the_message_as_it_was_and_the_traceback() -> None:
    fields = json.loads(JsonFormatter().format(record(HOSTILE, trace=True)))
    assert fields["message"] == HOSTILE
    assert fields["level"] == "warning"
    assert fields["logger"] == "vipscope.test"
    assert fields["traceback"].startswith("Traceback")
