"""Log lines: one message, one line, whatever the message holds."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


def escape(text: str) -> str:
    r"""`text` with line ends, terminal controls and the like as `\n`, `\x1b`, `\u2028`."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def _time(record: logging.LogRecord) -> str:
    stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return stamp.replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """`TIME LEVEL LOGGER: MESSAGE`, and a traceback, if there is one, indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text. Only lines of a traceback, indented, do not begin with a time."""
        level = record.levelname.lower()
        lines = [f"{_time(record)} {level} {record.name}: {escape(record.getMessage())}"]
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            lines += [f"    {escape(line)}" for line in trace.split("\n")]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message and, if there is one, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON in ASCII."""
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def configure(level: str, form: str) -> None:
    """Log to stderr from `level` up, Python's warnings too. `form` is text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
