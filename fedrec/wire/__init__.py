"""Encodings: files and messages."""
