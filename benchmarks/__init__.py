"""What is measured against whom. Each script writes its results, with machine and versions, to ``results/``."""
