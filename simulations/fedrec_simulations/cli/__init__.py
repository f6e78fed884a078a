"""The command line: one small module per command, one place that prints and chooses exit codes (`main`)."""
