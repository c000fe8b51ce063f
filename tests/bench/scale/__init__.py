"""What vipscope means for a large cluster's monitoring: `make bench ARGS=scale`."""
