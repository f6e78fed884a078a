"""Updates on their way to the sum: local training, compression, shards, and the settings of rounds."""
