"""Studies: arms of one recipe, trained over seeds and compared."""
