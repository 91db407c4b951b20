"""Tasks in natural language, on any model with a tokenizer."""
