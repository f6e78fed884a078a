"""The Python API behind `import fedrec`: data in memory, training, results as objects and tables."""
