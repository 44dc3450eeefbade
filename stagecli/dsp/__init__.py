"""Signal processing that several rooms share: one mel filter bank, one resampler."""
