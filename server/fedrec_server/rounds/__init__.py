"""The coordinator: asks nodes, sums their replies, applies the sum, and can resume."""
