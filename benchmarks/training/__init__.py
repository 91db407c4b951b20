"""Training of the built-in models, and compiling of programs: scripts of the repository, not part of the wheel."""
