"""Components of the benchmark app."""
