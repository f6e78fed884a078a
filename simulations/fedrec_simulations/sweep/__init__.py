"""What privacy costs: the same recommenders at several budgets, as one table and one page."""
