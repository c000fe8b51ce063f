"""The API server: requests, and the objects behind a list that a watch keeps up to date."""
