"""The parts of a server under one supervisor: started together, started again when one dies, restarted by name."""
