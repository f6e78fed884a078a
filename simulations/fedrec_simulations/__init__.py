"""Experiments: configurations, engines, reports and the command line."""
