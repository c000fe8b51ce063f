"""One file per subsystem, and the explicit tuple of all of them."""

from __future__ import annotations

from vipscope.collectors.base import Collector

ALL: tuple[type[Collector], ...] = ()
"""Every collector, in the order of settings.COLLECTORS."""
