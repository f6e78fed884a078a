"""Where a device keeps what it knows of its person."""
