"""Tasks of models whose circuit is known, and how their truth is derived."""
