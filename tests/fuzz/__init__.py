"""Random batches for every registered estimator and loss; ``make fuzz`` draws 100,000 of them."""
