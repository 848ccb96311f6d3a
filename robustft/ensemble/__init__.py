"""After training: weight space (WiSE-FT), output space (OSE) and sample-wise (VRF) ensembles."""
