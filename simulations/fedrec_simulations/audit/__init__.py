"""Audits of privacy and attacks on recorded runs."""
