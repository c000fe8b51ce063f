"""Dashboards for Grafana, written once and rendered to JSON that is ready to import.

`panels` is the vocabulary, `queries` what several dashboards ask; each file of `boards` is one
dashboard and reads as its table of contents. `grafana` alone knows grafanalib and Grafana's JSON.
`python -m dashboards` renders.

The queries read what the rules of `alerts` record. Of exporters' own series they read one node's,
those of the cluster role, or the few that topk leaves.
"""
