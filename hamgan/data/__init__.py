"""The data path: from folders, archives and published files to one verified HDF5 file, and from it to batches.

Nothing is imported here: whoever reads a training file does not load the builder, nor the builder torch.
"""
