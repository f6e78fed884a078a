"""Interactions, catalogue, loaders, cleaning and splits."""
