"""Models: settings, networks, potentials, what is folded of them for predictions, files."""
