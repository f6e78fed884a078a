"""What an operator does: configurations, plans, terms, publications."""
