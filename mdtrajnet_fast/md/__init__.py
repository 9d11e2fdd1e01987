"""Rollouts: windows, the engines that compute them, and what users call."""
