"""Differential privacy: the plan, its noise, its accounting and its budget."""
