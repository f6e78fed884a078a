"""How updates are computed for many users at once, and how a sum of them is applied."""
