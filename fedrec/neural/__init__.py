"""The batched engine for torch models: thousands of users at once, one copy of the parameters."""
