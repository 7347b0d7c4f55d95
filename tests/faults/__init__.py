"""Faults that are made to happen: what the user sees, and what is kept."""
