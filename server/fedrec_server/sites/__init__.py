"""Sites: organisations whose own node trains; admitted by the key that they made, on any host."""
