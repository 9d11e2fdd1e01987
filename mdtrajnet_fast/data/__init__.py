"""Training data: records of trajectories, pairs of frames, and how they are made."""
