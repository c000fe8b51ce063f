"""Pure: kube-proxy's naming, and what follows from the order of rules."""
