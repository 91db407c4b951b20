"""Putting a circuit to every test that the field's critics ask for: `acdc.audit`, one file a check."""
