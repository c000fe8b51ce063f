"""One file per subsystem, and the explicit tuple of all of them."""
