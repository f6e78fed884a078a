"""Connections before credentials: limits, admission, certificates and HTTP."""
