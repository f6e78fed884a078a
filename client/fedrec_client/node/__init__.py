"""The node: trains on the histories that it holds and answers a coordinator."""
