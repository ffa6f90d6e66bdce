"""Posteriors in other projects' programs. Each module needs an extra of its own and is imported only by who uses it.

lm_eval    a posterior as a model of EleutherAI's lm-evaluation-harness (`varlora lm-eval`)
"""
