"""Recording rules, alerts and routing for Prometheus, written once and rendered to YAML.

Files in the order of the data: `sources` (latency histograms of any origin become one set of
series) -> `latency` -> `growth` -> `association` -> `attribution` -> `slo` -> `causes`, and beside
them what the operator loads it into: `alertmanager` and `prometheus`. `python -m alerts` renders.

The rules assume that the scrape gives every series of an exporter the label `node`, and `cluster`
where one Prometheus sees several (`prometheus` shows how). Both are in every aggregation: where the
scrape sets no `cluster`, it is the empty label, and nothing changes.
"""
