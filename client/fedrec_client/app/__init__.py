"""What an app imports: numpy, cryptography and grpcio alone."""
