"""Scoring: the Backend protocol, the Scorer in front of it, budgets and losses."""
