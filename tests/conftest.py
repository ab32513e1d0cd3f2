"""One thread for all tests: they are many and small, and threads on a shared machine only wait for each other."""

import torch

torch.set_num_threads(1)
