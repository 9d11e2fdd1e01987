"""What trajectories say, and whether they can be believed."""
