"""One file per operator contract: its schema, shape function and gradients. The work is done by a backend."""
