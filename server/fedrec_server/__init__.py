"""The coordinator and what it needs to be deployed."""
