"""Pure: what is wrong, and why."""
