"""Three engines for one round protocol: in process, Flower's simulation, a Flower deployment."""
