"""Text to codes: a causal transformer that paints an image scale by scale (paper, section 3.3)."""
