"""Layers: spectral normalisation, batch norm, matrix decompositions, attention, residual blocks. Imports torch only."""
