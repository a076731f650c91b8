"""Experiments: several tasks in one network, each against a dense control, with an audit of forgetting."""
