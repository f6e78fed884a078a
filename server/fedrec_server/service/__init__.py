"""The model service: hands out signed models over gRPC, learns nothing of who asks."""
