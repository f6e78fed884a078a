"""Recommenders that predict the probability of a click or a rating from features."""
