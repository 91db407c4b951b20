"""Models whose circuit is known: compiled programs, and networks trained to run them."""
