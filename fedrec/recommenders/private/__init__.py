"""Closed forms whose updates are bounded by construction, for differential privacy per user."""
