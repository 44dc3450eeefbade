"""Studies: arms of one recipe, trained with the same seeds, scored at the same steps, compared."""
