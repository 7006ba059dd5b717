"""What stands around the endpoints: sockets, bodies up to a limit, keys, who may come in, what goes out and what is said of it."""
