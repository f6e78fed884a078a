"""Recommenders built around another one."""
