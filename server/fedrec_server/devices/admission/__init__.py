"""Who may join a cohort: verifiers, registered by name."""
