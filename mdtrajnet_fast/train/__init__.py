"""Training and errors of models."""
