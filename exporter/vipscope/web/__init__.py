"""Who may ask over HTTP, and over what: the web configuration file, and limits of connections."""
