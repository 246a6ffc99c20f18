"""The attentions that Nyström attention is compared with, each with its signature."""
