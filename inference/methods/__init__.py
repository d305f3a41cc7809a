"""Methods that compute a posterior: Laplace with quadrature, SVI and NUTS."""
