"""What a server answers: an endpoint each, or a few that belong together."""
