"""Tools of the project itself: transcripts and a fuzzer of the model service."""
