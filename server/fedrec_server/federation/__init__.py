"""A deployment: SuperLink, gateway, SuperNodes, and runs on them."""
