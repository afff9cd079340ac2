"""Tests of the model floor: packed forwards, decoding, adapters, checkpointing, files."""
