"""What a device agrees to: consent, policy, conditions, participation and its budget."""
