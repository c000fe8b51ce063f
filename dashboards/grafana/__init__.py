"""Grafana's JSON. Nothing else imports grafanalib.

grafanalib 0.7.1 defaults to schema version 12 and to shapes of panels, targets and thresholds that
Grafana has given up. A dashboard that says a current schema version is migrated no more, so all of
these are written here as Grafana 11.1 and later save them.
"""
