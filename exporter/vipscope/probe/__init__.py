"""Trying things out as a client would: DNS queries, connections, and those that measure."""
