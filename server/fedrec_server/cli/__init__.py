"""The operator's program `fedrec-server`, and what both programs are built of."""
