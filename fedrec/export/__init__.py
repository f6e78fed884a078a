"""A served model in formats that other runtimes read; needs the extra `export`."""
