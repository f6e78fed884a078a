"""Messages of the model service. `model_service_pb2` is generated: `make proto` writes it again."""
