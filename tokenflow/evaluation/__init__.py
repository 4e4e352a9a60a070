"""Evaluation: how faithful a tokenizer's reconstructions are, how it uses its codes, and the page that shows it."""
