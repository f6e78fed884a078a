"""Secure aggregation: a server learns a sum of vectors and nothing else. State machines without transport."""
