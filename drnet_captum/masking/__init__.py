"""Random masks of an image, what it is filled with where they hide it, and what is summed over them."""
