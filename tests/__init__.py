"""Tests, a folder for each package, and the tiny models and tokenizer that they share."""
