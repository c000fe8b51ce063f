"""The tests of vipscope, and the laboratory that they run in."""
