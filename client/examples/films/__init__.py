"""Matinee: an example app in which a few people side by side find films, each with a device of their own."""
