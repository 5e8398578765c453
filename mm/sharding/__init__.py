"""Where arrays live: the mesh, the rules from logical to mesh axes, and what follows from them."""
