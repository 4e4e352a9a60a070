"""Codes and text to text."""
