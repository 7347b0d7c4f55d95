"""Independent reference: the definitions in numpy float64, written without sight of the package."""
