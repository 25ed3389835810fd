"""Steepest descent in the sign and spectral geometries: signSGD, Signum, specSGD, Muon.

Each direction is the steepest one of length one: p maximises the inner product with the
gradient, which is then the dual norm of the gradient.
"""
