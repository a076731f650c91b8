"""Benchmarks that a sceptic would trust: `rsn2 bench`.

cases -> measure (baselines, networks, memory; timing) -> results.json -> analysis -> report, plots, compare
"""
