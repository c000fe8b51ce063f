"""Recording rules and alerts: promtool's unit tests, written as Python data."""
