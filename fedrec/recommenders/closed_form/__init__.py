"""Recommenders whose parameters follow from sums in closed form."""
