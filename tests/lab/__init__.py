"""The test laboratory: real kernels to test against, and what kube-proxy writes into them.

`namespace` gives a fresh network namespace of this machine's kernel, `uml` a kernel with IPVS,
`rulesets` and `strategies` the contents, `counts` an independent opinion on what is in there.
"""
