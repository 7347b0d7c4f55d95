"""The smoke task of the package: a tiny model learns to sort four digits, through verl, on a CPU."""
