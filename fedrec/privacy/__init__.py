"""What bounds and hides the contribution of one user."""
