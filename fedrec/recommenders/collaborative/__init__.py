"""Recommenders that learn from pairs of users and items by gradients."""
