"""How a device gets models: transports, The Update Framework, and what it verified."""
