"""The command line: reads options, calls the API, prints. Nothing is computed here."""
