"""Fault injection: runs in processes of their own, harms, and the comparison of the results (scripts/chaos.py)."""
