"""A cluster to watch on one bare machine, as root: `make demo`, or `make demo DEMO=short`.

A network namespace is the node. `site` has what works on it: an API server, pods that answer, and
who writes rules as kube-proxy does. vipscope watches it in both roles, a real Prometheus and
Alertmanager with the project's rules watch vipscope, with minutes as seconds. `play` lets the
cluster grow and then go wrong, one `incidents` after another; `board` shows it on the terminal,
`doors` lets a browser on this machine look into the namespace, and `summary` asks Prometheus at the
end what it has seen.
"""
