"""Files: trajectories and structures."""
