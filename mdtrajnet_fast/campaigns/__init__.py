"""Campaigns: many runs, of structures, temperatures, seeds and models, on one machine or many."""
