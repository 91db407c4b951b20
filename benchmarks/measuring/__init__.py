"""Measurements that docs/ reports: scripts of the repository, not part of the wheel."""
