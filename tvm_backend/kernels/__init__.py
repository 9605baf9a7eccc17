"""Fast kernels: they change speed only and are held to the bits of the operators."""
