"""Evaluating recommenders honestly: candidates, ranks, metrics, and the sums that may travel."""
