"""The peer of the speed benchmark: matrix factorisation as an ordinary Flower app."""
