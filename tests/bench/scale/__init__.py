"""What vipscope means for a large cluster's monitoring: `python -m tests.bench.scale`."""
