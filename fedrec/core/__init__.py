"""The ground floor: data types, contracts, messages, randomness and errors; imports nothing else of ours."""
