"""Flower's SecAgg+ as an app: the workflow and the mod that Flower brings."""
