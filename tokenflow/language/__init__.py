"""The causal transformer that generation and understanding share, its text tokenizers, weights from HF folders."""
