"""Who may do what on the bus: the table of rights, the keys, and the server's configuration made of both."""
