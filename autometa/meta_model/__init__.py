"""PyTorch meta-model: meta-features and candidates in, a joint belief over scores out."""
