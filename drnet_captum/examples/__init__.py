"""Worked examples, to be read from top to bottom; ``drnet-captum example NAME`` runs them."""
