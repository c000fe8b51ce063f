"""Trying things out as a client would: a DNS query, a TCP connection."""
