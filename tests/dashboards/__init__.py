"""The dashboards: their JSON, and real data behind every panel."""
