"""Judging a circuit: faithfulness, curves, completeness, minimality, and what is known of it."""
