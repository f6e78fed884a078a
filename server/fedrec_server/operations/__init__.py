"""What an operator does: campaigns and their participation records."""
