"""What an operator does with runs: campaigns, publishing, keys and checks."""
