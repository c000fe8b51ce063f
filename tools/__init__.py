"""What the repository's own work needs and the wheel does not."""
